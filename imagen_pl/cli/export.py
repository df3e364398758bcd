"""`imagen-pl export`: write a model for other programs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.cli.open_model import check_upscaler, open_model, open_upscaler
from imagen_pl.cli.options import (
    add_discriminator_argument,
    add_model_argument,
    add_upscaler_argument,
    verb_parser,
)
from imagen_pl.errors import UserError
from imagen_pl.storage.model_paths import model_file
from imagen_pl.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from imagen_pl.inference.pipeline import TextToImage


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "export",
        description="Write a model for other programs, and check that it gives the same pictures.",
        notes=(
            "onnx and torch-export contain the generator, the text encoder, the tokenizer, and a README.md "
            "with code that draws. web is a page that draws in the reader's browser, a folder for any static "
            "host. All three draw without refinement (--refine 0 of `imagen-pl sample`)."
        ),
    )
    add_model_argument(parser)
    parser.add_argument(
        "--to", choices=("safetensors", "onnx", "torch-export", "web"), required=True, help="file format"
    )
    parser.add_argument("--half", action="store_true", help="store safetensors in float16, at half the size")
    parser.add_argument(
        "--ema_length",
        type=float,
        metavar="S",
        help="average the generator over the end of a run that was trained with PowerAverages; S is the "
        "standard deviation of the average's weights over time, as a share of the run, about 0.04 to 0.2",
    )
    add_discriminator_argument(parser)
    add_upscaler_argument(parser, given="with --to web: ")
    parser.add_argument("--examples", nargs="+", metavar="PROMPT", help="with --to web: prompts to click on")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="T",
        help="with --to web: largest difference of the page's pictures from PyTorch's, of -1 to 1; a larger "
        "one makes the download smaller (default: 0.002)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return export(make_parser().parse_args(words))


def export(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: the folder is not empty, the model cannot be exported in this format, a package is missing,
            or the exported model draws other images.
    """
    out = Path(arguments.out)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"--out {out} is not empty: name another folder")
    _check_options(arguments)
    file = model_file(arguments.model, arguments.with_discriminator)
    if arguments.ema_length is not None:
        file = _last_checkpoint(Path(arguments.model))
    model = open_model(str(file), device="cpu", draws=arguments.to != "safetensors")
    if arguments.ema_length is not None:
        _take_average(model, Path(arguments.model), arguments.ema_length)
    if arguments.to == "web":
        return _export_web(model, arguments, file.parent, out)
    from imagen_pl.inference.export import export_graphs, export_safetensors

    if arguments.to == "safetensors":
        gap = export_safetensors(model, out, arguments.half, arguments.with_discriminator)
    else:
        gap = export_graphs(model, out, arguments.to)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6
    print(f"{out}: {', '.join(sorted(f.name for f in out.iterdir()))}, {size:.1f} MB")
    if model.generator.reads_images:
        print(f"read again from these files, weights differ by {gap:.1e} at most, relative to the largest")
    else:
        print(f"drawn again from these files, images differ by {gap:.1e} at most, of -1 to 1")
    if arguments.to != "safetensors" and model.refine_steps(None):
        print("note: these files draw without refinement, like `imagen-pl sample --refine 0`")
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise UserError if an option is set that has no effect with this --to."""
    if arguments.with_discriminator and arguments.to != "safetensors":
        raise UserError("--with-discriminator goes with --to safetensors only")
    if arguments.half and arguments.to != "safetensors":
        raise UserError("--half goes with --to safetensors alone")
    for name in ("upscaler", "examples", "tolerance"):
        if getattr(arguments, name) is not None and arguments.to != "web":
            raise UserError(f"--{name} goes with --to web alone")
    if arguments.tolerance is not None and not arguments.tolerance > 0:
        raise UserError(f"--tolerance {arguments.tolerance} must be more than 0")
    check_upscaler(arguments.upscaler)


def _export_web(model: TextToImage, arguments: argparse.Namespace, folder: Path, out: Path) -> int:
    """Write the page.

    Args:
        model: the model.
        arguments: of the command line.
        folder: of the model's file, which may have a model card beside it.
        out: the new folder.
    """
    from imagen_pl.demo.facts import Knowledge
    from imagen_pl.inference.model_card import model_card
    from imagen_pl.inference.web_export import TOLERANCE, PageTexts, export_web

    name = Path(arguments.model).name
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else model_card(name, model.description)
    texts = PageTexts(name, arguments.examples or Knowledge.of(model).examples(), text)
    upscaler = open_upscaler(arguments.upscaler, model, "cpu")
    gaps = export_web(model, out, texts, upscaler, arguments.tolerance or TOLERANCE)
    sizes = {f.relative_to(out): f.stat().st_size / 1e6 for f in sorted(out.rglob("*")) if f.is_file()}
    for path in ("model", "runtime"):
        size = sum(value for name, value in sizes.items() if name.parts[0] == path)
        print(f"{out / path}: {size:.1f} MB")
    print(f"{out}: {sum(sizes.values()):.1f} MB in all, which a browser loads once")
    print(f"images differ by {gaps['text_encoder']:.1e} at most from PyTorch's, of -1 to 1")
    if upscaler is not None:
        print(f"the same picture enlarged differs by {gaps['upscaler']:.1e} at most")
    print(f"serve the folder with any web server, for example: python -m http.server --directory {out}")
    return 0


def _last_checkpoint(run: Path) -> Path:
    """The newest checkpoint: averages are of the end of a run, which may have grown since the best one."""
    newest = RunFolder(run).newest_checkpoint() if run.is_dir() else None
    if newest is None:
        raise UserError(f"--ema_length averages over a run: give its folder instead of {run}")
    return newest


def _take_average(model: TextToImage, run: Path, length: float) -> None:
    """Replace the generator's parameters by their average over the end of the run; its buffers stay.

    Raises:
        UserError: the run has no snapshots for it, they are not of this generator, or older than the model.
    """
    from imagen_pl.training.post_hoc_ema import average

    averaged, images = average(run, length)
    if averaged.keys() != dict(model.generator.named_parameters()).keys():
        raise UserError(f"the snapshots in {run} are of another generator: give the run that they belong to")
    if images != model.description["images_seen"]:
        raise UserError(
            f"the last snapshot of {run} was taken after {images:,} images, but its newest checkpoint has "
            f"seen {model.description['images_seen']:,}: resume the run with PowerAverages until its end"
        )
    model.generator.load_state_dict(averaged, strict=False)
    model.description["ema_length"] = length
