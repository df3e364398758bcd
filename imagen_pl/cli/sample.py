"""`imagen-pl sample`: prompts, on the line or in a file, to pictures in files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

import imagen_pl
from imagen_pl.cli.options import add_drawing_options, add_model_argument, verb_parser
from imagen_pl.cli.prompt_files import Prompt, read_prompts
from imagen_pl.errors import UserError
from imagen_pl.imaging.background_removal import cut_out
from imagen_pl.imaging.grids import labelled_grid, save_picture, strip
from imagen_pl.inference.pipeline import TextToImage, check_guidance, load
from imagen_pl.inference.refinement import check_refine

T = TypeVar("T")
_SHOW_AFTER_S = 2.0


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "sample",
        description="Draw pictures for prompts. A picture is decided by its prompt and its seed.",
        notes=(
            "A file of prompts is .txt (one a line), .csv or .jsonl (field `prompt`; a field `seed` "
            "overrules --seed). --out DIR then gets one PNG a prompt and a metadata.jsonl with file_name, "
            "prompt, seed and every other field of the row, so that DIR is itself a data set to train on."
        ),
    )
    add_model_argument(parser)
    parser.add_argument("prompt", nargs="*", help="what to draw; a row of the grid each")
    parser.add_argument("--prompts", metavar="FILE", help="read the prompts from a .txt, .csv or .jsonl file")
    parser.add_argument("--num_images", type=int, default=1, metavar="N", help="pictures each (default: 1)")
    parser.add_argument(
        "--out", metavar="PATH", help="the grid's file (default: sample.png); with --prompts, a folder"
    )
    parser.add_argument(
        "--format", choices=("png", "webp", "jpg"), default="png", help="of single pictures (default: png)"
    )
    parser.add_argument("--plain", action="store_true", help="leave the prompts out of the grid")
    parser.add_argument(
        "--transparent",
        action="store_true",
        help="cut the pictures out of their white background; PNG or WebP",
    )
    parser.add_argument("--singles", metavar="DIR", help="write each picture to a file here as well")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object a picture: file, prompt, seed"
    )
    add_drawing_options(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and do what it says."""
    return sample(make_parser().parse_args(words))


def sample(arguments: argparse.Namespace) -> int:
    """Do what the parsed command line says.

    Raises:
        UserError: the arguments do not go together, or a file is missing or bad.
    """
    if arguments.prompts is None:
        _check_line(arguments)
        _grid(load(arguments.model, arguments.device), arguments)
    else:
        prompts, out = _check_file(arguments)
        _folder(load(arguments.model, arguments.device), prompts, out, arguments)
    return 0


# ---------------------------------------------------------------------- prompts on the line


def _check_line(arguments: argparse.Namespace) -> None:
    if not arguments.prompt:
        raise UserError('name at least one prompt, as "a red heart, fluent style", or a file with --prompts')
    check_drawing(arguments)
    out = Path(arguments.out or "sample.png")
    check_picture(out, "unless --prompts names a file of prompts")
    _check_transparent(arguments, out.suffix)


def check_picture(out: Path, unless: str = "") -> None:
    """Raise UserError where --out is no file for a picture."""
    if out.is_dir() or out.suffix.lower() not in (".png", ".webp", ".jpg", ".jpeg"):
        raise UserError(f"--out {out} must be a .png, .webp or .jpg file{', ' + unless if unless else ''}")


def _grid(model: TextToImage, arguments: argparse.Namespace) -> None:
    out = Path(arguments.out or "sample.png")
    pairs = [(p, arguments.seed + k) for p in arguments.prompt for k in range(arguments.num_images)]
    pictures = list(_draw(model, pairs, arguments))
    n = arguments.num_images
    rows = [strip(pictures[i : i + n], smallest=128) for i in range(0, len(pictures), n)]
    labels = [""] * len(rows) if arguments.plain else arguments.prompt
    out.parent.mkdir(parents=True, exist_ok=True)
    about = provenance(model, arguments)
    prompts = "\n".join(arguments.prompt)
    save_picture(
        labelled_grid(rows, labels, columns=1), out, {"prompt": prompts, "seed": arguments.seed, **about}
    )
    told = ResultPrinter(arguments.json)
    told.add(f"{out}: {_count(len(pictures))} of {model.resolution} px, seeds from {arguments.seed}")
    if arguments.singles:
        folder = Path(arguments.singles)
        folder.mkdir(parents=True, exist_ok=True)
        for i, (picture, (prompt, seed)) in enumerate(zip(pictures, pairs, strict=True)):
            file = folder / _file_name(i // n, i % n, n, arguments.format)
            save_picture(picture, file, {"prompt": prompt, "seed": seed, **about})
            told.file(file, prompt, seed)
        told.add(f"{folder}: one file a picture")
    else:
        for prompt in arguments.prompt:
            told.file(out, prompt, arguments.seed)


# ---------------------------------------------------------------------- prompts in a file


def _check_file(arguments: argparse.Namespace) -> tuple[list[Prompt], Path]:
    if arguments.prompt:
        raise UserError("give prompts on the line or in --prompts FILE, not both")
    if arguments.singles:
        raise UserError("--singles goes with prompts on the line; --prompts writes single files anyway")
    check_drawing(arguments)
    _check_transparent(arguments)
    if arguments.out is None:
        raise UserError("--prompts writes a folder: name it with --out DIR")
    out = Path(arguments.out)
    if out.is_file() or out.suffix.lower() in (".png", ".webp", ".jpg", ".jpeg"):
        raise UserError(f"--out {out} must be a folder where --prompts names a file of prompts")
    if (out / "metadata.jsonl").exists():
        raise UserError(f"--out {out} already holds a metadata.jsonl: name another folder")
    return read_prompts(arguments.prompts), out


def _folder(model: TextToImage, prompts: list[Prompt], out: Path, arguments: argparse.Namespace) -> None:
    n = arguments.num_images
    seeds = row_seeds(prompts, arguments.seed, n)
    pairs = [(p.text, seed + k) for p, seed in zip(prompts, seeds, strict=True) for k in range(n)]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        drawn = _draw(model, pairs, arguments)
        about, told = provenance(model, arguments), ResultPrinter(arguments.json)
        for i, (picture, (text, seed)) in enumerate(zip(drawn, pairs, strict=True)):
            name = _file_name(i // n, i % n, n, arguments.format)
            save_picture(picture, out / name, {"prompt": text, "seed": seed, **about})
            told.file(out / name, text, seed)
            row = {"file_name": name, "prompt": text, "seed": seed, **prompts[i // n].fields}
            metadata.write(json.dumps(row, ensure_ascii=False) + "\n")
    told.add(f"{out}: {_count(len(pairs))} of {model.resolution} px and metadata.jsonl")


# ---------------------------------------------------------------------- both


def check_drawing(arguments: argparse.Namespace) -> None:
    """Raise UserError where --num_images or what `drawing_options` gives is out of range."""
    if arguments.num_images < 1:
        raise UserError(f"--num_images {arguments.num_images} must be 1 or more")
    check_drawing_options(arguments)


def check_drawing_options(arguments: argparse.Namespace) -> None:
    """Raise UserError where one of `drawing_options` is out of range."""
    if not 0 <= arguments.truncation <= 1:
        raise UserError(f"--truncation {arguments.truncation} is not between 0 and 1")
    check_guidance(arguments.guidance, "--guidance")
    check_refine(arguments.refine, "--refine")


def drawing_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What every verb that draws takes, as `TextToImage.draw` does."""
    return {name: getattr(arguments, name) for name in ("truncation", "guidance", "refine")}


def _check_transparent(arguments: argparse.Namespace, ending: str = "") -> None:
    if arguments.transparent and ("jpg" in arguments.format or ending.lower() in (".jpg", ".jpeg")):
        raise UserError("--transparent needs .png or .webp: a JPEG file cannot be transparent")


def _draw(
    model: TextToImage, pairs: list[tuple[str, int]], arguments: argparse.Namespace
) -> Iterator[Image.Image]:
    drawn = with_progress(model.draw(pairs, **drawing_options(arguments)), len(pairs))
    return map(cut_out, drawn) if arguments.transparent else drawn


def row_seeds(prompts: Sequence[Prompt], seed: int, num_images: int) -> list[int]:
    """The first seed of each row: its own, or another for each, lest all pictures share one latent."""
    return [seed + row * num_images if p.seed is None else p.seed for row, p in enumerate(prompts)]


def _count(pictures: int) -> str:
    return f"{pictures:,} picture{'s' * (pictures != 1)}"


def _file_name(row: int, k: int, num_images: int, kind: str) -> str:
    return f"{row:06d}.{kind}" if num_images == 1 else f"{row:06d}-{k}.{kind}"


class ResultPrinter:
    """What is printed: lines for people, or a JSON object a picture for programs.

    Args:
        json: the latter.
    """

    def __init__(self, json: bool) -> None:
        self.json = json

    def add(self, line: str) -> None:
        if not self.json:
            print(line)

    def file(self, file: Path, prompt: str, seed: int) -> None:
        if self.json:
            print(json.dumps({"file": str(file), "prompt": prompt, "seed": seed}, ensure_ascii=False))


def provenance(model: TextToImage, arguments: argparse.Namespace) -> dict[str, Any]:
    """Where a picture comes from, besides its prompt and seed."""
    return {
        "model": arguments.model,
        "images_seen": model.description.get("images_seen", ""),
        **drawing_options(arguments),
        "software": f"imagen_pl {imagen_pl.__version__}",
    }


def with_progress(pictures: Iterable[T], total: int) -> Iterator[T]:
    """The same, with a progress bar once it takes more than two seconds."""
    from tqdm import tqdm

    yield from tqdm(
        pictures, total=total, delay=_SHOW_AFTER_S, unit=" pictures", file=sys.stderr, leave=False
    )
