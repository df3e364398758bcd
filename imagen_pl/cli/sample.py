"""`imagen-pl sample`: draw pictures for prompts on the command line or in a file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.cli.cascade import Cascade, open_cascade
from imagen_pl.cli.drawing import (
    PICTURE_SUFFIXES,
    check_num_images,
    check_picture_path,
    check_prompts,
    row_seeds,
)
from imagen_pl.cli.options import (
    add_model_argument,
    add_sampling_options,
    add_upscaler_argument,
    sampling_options,
    verb_parser,
)
from imagen_pl.cli.prompt_files import Prompt, read_prompts
from imagen_pl.errors import UserError
from imagen_pl.inference.sampling_options import SamplingOptions, check_noise

if TYPE_CHECKING:
    from PIL import Image


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "sample",
        description="Draw pictures for prompts. A prompt and a seed always give the same picture.",
        notes=(
            "A file of prompts is .txt (one per line), .csv or .jsonl (field `prompt`; a field `seed` "
            "takes precedence over --seed). --out DIR then gets one PNG per prompt and a metadata.jsonl with "
            "file_name, prompt, seed and every other field of the row, so that DIR can be trained on."
        ),
    )
    add_model_argument(parser)
    parser.add_argument("prompt", nargs="*", help="what to draw; one row of the grid for each prompt")
    parser.add_argument("--prompts", metavar="FILE", help="read the prompts from a .txt, .csv or .jsonl file")
    parser.add_argument(
        "--num_images", type=int, default=1, metavar="N", help="pictures per prompt (default: 1)"
    )
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="file of the grid (default: sample.png), or an .svg file for one picture, traced as curves; "
        "with --prompts, a folder",
    )
    parser.add_argument(
        "--format",
        choices=("png", "webp", "jpg", "svg"),
        default="png",
        help="format of single pictures (default: png); svg traces them as curves",
    )
    parser.add_argument("--plain", action="store_true", help="no prompts in the grid")
    parser.add_argument(
        "--transparent",
        action="store_true",
        help="make the white background transparent; PNG or WebP. Models trained with data.alpha draw "
        "transparency without it",
    )
    parser.add_argument(
        "--singles", metavar="DIR", help="also write each picture to a file of its own in this folder"
    )
    add_upscaler_argument(parser)
    parser.add_argument(
        "--upscaler_noise",
        type=float,
        default=0.0,
        metavar="N",
        help="noise added before, so that faults may be replaced by detail, 0 to 1 (default: 0)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per picture: file, prompt, seed"
    )
    add_sampling_options(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return sample(make_parser().parse_args(words))


def sample(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: arguments contradict each other, or a file is missing or malformed.
    """
    check_num_images(arguments.num_images)
    check_noise(arguments.upscaler_noise, "--upscaler_noise")
    options = sampling_options(arguments)
    if arguments.prompts is None:
        _check_line(arguments)
        _grid(_open(arguments, options), arguments)
    else:
        prompts, out = _check_file(arguments)
        _folder(_open(arguments, options), prompts, out, arguments)
    return 0


def _open(arguments: argparse.Namespace, options: SamplingOptions) -> Cascade:
    return open_cascade(arguments, options, arguments.upscaler_noise)


def _draw(
    cascade: Cascade, pairs: list[tuple[str, int]], arguments: argparse.Namespace
) -> Iterator[Image.Image]:
    """Pictures for pairs of a prompt and a seed, without their background if that is wanted."""
    drawn = cascade.draw(pairs)
    if not arguments.transparent or cascade.model.alpha:
        return drawn
    from imagen_pl.imaging.background_removal import remove_background

    return map(remove_background, drawn)


# ---------------------------------------------------------------------- prompts on the line


def _check_line(arguments: argparse.Namespace) -> None:
    if not arguments.prompt:
        raise UserError('name at least one prompt, as "a red heart, fluent style", or a file with --prompts')
    check_prompts(arguments.prompt)
    out = Path(arguments.out or "sample.png")
    if _is_svg(out):
        if len(arguments.prompt) * arguments.num_images > 1:
            raise UserError(
                f"--out {out} holds one picture: for {len(arguments.prompt) * arguments.num_images} of them, "
                "write --singles DIR --format svg"
            )
    else:
        check_picture_path(out, "unless --prompts names a file of prompts")
    _check_transparent(arguments, out.suffix)


def _grid(cascade: Cascade, arguments: argparse.Namespace) -> None:
    from imagen_pl.imaging.grids import labelled_grid, size_text, strip

    out = Path(arguments.out or "sample.png")
    pairs = [(p, arguments.seed + k) for p in arguments.prompt for k in range(arguments.num_images)]
    pictures = list(_draw(cascade, pairs, arguments))
    n = arguments.num_images
    rows = [strip(pictures[i : i + n], min_width=128) for i in range(0, len(pictures), n)]
    labels = [""] * len(rows) if arguments.plain else arguments.prompt
    out.parent.mkdir(parents=True, exist_ok=True)
    about = cascade.about()
    prompts = "\n".join(arguments.prompt)
    sheet = pictures[0] if _is_svg(out) else labelled_grid(rows, labels, columns=1, transparent=True)
    _save(sheet, out, {"prompt": prompts, "seed": arguments.seed, **about})
    printer = ResultPrinter(arguments.json)
    printer.line(
        f"{out}: {_count(len(pictures))} of {size_text(pictures[0].size)}, seeds from {arguments.seed}"
    )
    if arguments.singles:
        folder = Path(arguments.singles)
        folder.mkdir(parents=True, exist_ok=True)
        for i, (picture, (prompt, seed)) in enumerate(zip(pictures, pairs, strict=True)):
            file = folder / _file_name(i // n, i % n, n, arguments.format)
            _save(picture, file, {"prompt": prompt, "seed": seed, **about})
            printer.picture(file, prompt, seed)
        printer.line(f"{folder}: one file per picture")
    else:
        for prompt in arguments.prompt:
            printer.picture(out, prompt, arguments.seed)


# ---------------------------------------------------------------------- prompts in a file


def _check_file(arguments: argparse.Namespace) -> tuple[list[Prompt], Path]:
    if arguments.prompt:
        raise UserError("give prompts on the line or in --prompts FILE, not both")
    if arguments.singles:
        raise UserError("--singles goes with prompts on the line; --prompts writes single files anyway")
    _check_transparent(arguments)
    if arguments.out is None:
        raise UserError("--prompts writes a folder: name it with --out DIR")
    out = Path(arguments.out)
    if out.is_file() or out.suffix.lower() in PICTURE_SUFFIXES:
        raise UserError(f"--out {out} must be a folder where --prompts names a file of prompts")
    if (out / "metadata.jsonl").exists():
        raise UserError(f"--out {out} already contains a metadata.jsonl: name another folder")
    return read_prompts(arguments.prompts), out


def _folder(cascade: Cascade, prompts: list[Prompt], out: Path, arguments: argparse.Namespace) -> None:
    from imagen_pl.imaging.grids import size_text

    n = arguments.num_images
    seeds = row_seeds(prompts, arguments.seed, n)
    pairs = [(p.text, seed + k) for p, seed in zip(prompts, seeds, strict=True) for k in range(n)]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        about, printer = cascade.about(), ResultPrinter(arguments.json)
        drawn = _draw(cascade, pairs, arguments)
        for i, (picture, (text, seed)) in enumerate(zip(drawn, pairs, strict=True)):
            name = _file_name(i // n, i % n, n, arguments.format)
            _save(picture, out / name, {"prompt": text, "seed": seed, **about})
            printer.picture(out / name, text, seed)
            row = {"file_name": name, "prompt": text, "seed": seed, **prompts[i // n].fields}
            metadata.write(json.dumps(row, ensure_ascii=False) + "\n")
    printer.line(f"{out}: {_count(len(pairs))} of {size_text(picture.size)} and metadata.jsonl")


# ---------------------------------------------------------------------- shared by both


def _check_transparent(arguments: argparse.Namespace, suffix: str = "") -> None:
    if arguments.transparent and ("jpg" in arguments.format or suffix.lower() in (".jpg", ".jpeg")):
        raise UserError("--transparent needs .png or .webp: a JPEG file cannot be transparent")


def _is_svg(file: Path) -> bool:
    return file.suffix.lower() == ".svg"


def _save(picture: Image.Image, file: Path, metadata: Mapping[str, object]) -> None:
    from imagen_pl.imaging.grids import save_picture
    from imagen_pl.imaging.svg import save_svg

    (save_svg if _is_svg(file) else save_picture)(picture, file, metadata)


def _count(pictures: int) -> str:
    return f"{pictures:,} picture{'s' * (pictures != 1)}"


def _file_name(row: int, k: int, num_images: int, kind: str) -> str:
    return f"{row:06d}.{kind}" if num_images == 1 else f"{row:06d}-{k}.{kind}"


class ResultPrinter:
    """Prints lines for people, or one JSON object per picture for programs.

    Args:
        json: print JSON.
    """

    def __init__(self, json: bool) -> None:
        self.json = json

    def line(self, text: str) -> None:
        """Print a line, unless the output is JSON."""
        if not self.json:
            print(text)

    def picture(self, file: Path, prompt: str, seed: int) -> None:
        """Print a picture's JSON object, if the output is JSON."""
        if self.json:
            print(json.dumps({"file": str(file), "prompt": prompt, "seed": seed}, ensure_ascii=False))
