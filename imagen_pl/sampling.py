"""`imagen-pl sample`: prompts, on the line or in a file, to pictures in files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import imagen_pl
from imagen_pl.errors import UserError
from imagen_pl.inference import TextToImage, check_guidance, load
from imagen_pl.pictures import labelled_grid, save_picture, strip
from imagen_pl.prompts import Prompt, read_prompts

T = TypeVar("T")
_SHOW_AFTER_S = 2.0


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
    _check_number(arguments)
    check_picture(Path(arguments.out or "sample.png"), "unless --prompts names a file of prompts")


def check_picture(out: Path, unless: str = "") -> None:
    """Raise UserError where --out is no file for a picture."""
    if out.is_dir() or out.suffix.lower() not in (".png", ".webp", ".jpg", ".jpeg"):
        raise UserError(f"--out {out} must be a .png, .webp or .jpg file{', ' + unless if unless else ''}")


def _grid(model: TextToImage, arguments: argparse.Namespace) -> None:
    out = Path(arguments.out or "sample.png")
    pairs = [(p, arguments.seed + k) for p in arguments.prompt for k in range(arguments.num_images)]
    pictures = list(watched(model.draw(pairs, arguments.truncation, arguments.guidance), len(pairs)))
    n = arguments.num_images
    rows = [strip(pictures[i : i + n], smallest=128) for i in range(0, len(pictures), n)]
    labels = [""] * len(rows) if arguments.plain else arguments.prompt
    out.parent.mkdir(parents=True, exist_ok=True)
    about = facts(model, arguments)
    prompts = "\n".join(arguments.prompt)
    save_picture(
        labelled_grid(rows, labels, columns=1), out, {"prompt": prompts, "seed": arguments.seed, **about}
    )
    told = _Told(arguments.json)
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
    _check_number(arguments)
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
    # Another seed for each row: pictures of a large set must not all share one latent.
    seeds = [arguments.seed + row * n if p.seed is None else p.seed for row, p in enumerate(prompts)]
    pairs = [(p.text, seed + k) for p, seed in zip(prompts, seeds, strict=True) for k in range(n)]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        drawn = watched(model.draw(pairs, arguments.truncation, arguments.guidance), len(pairs))
        about, told = facts(model, arguments), _Told(arguments.json)
        for i, (picture, (text, seed)) in enumerate(zip(drawn, pairs, strict=True)):
            name = _file_name(i // n, i % n, n, arguments.format)
            save_picture(picture, out / name, {"prompt": text, "seed": seed, **about})
            told.file(out / name, text, seed)
            row = {"file_name": name, "prompt": text, "seed": seed, **prompts[i // n].fields}
            metadata.write(json.dumps(row, ensure_ascii=False) + "\n")
    told.add(f"{out}: {_count(len(pairs))} of {model.resolution} px and metadata.jsonl")


# ---------------------------------------------------------------------- both


def _check_number(arguments: argparse.Namespace) -> None:
    if arguments.num_images < 1:
        raise UserError(f"--num_images {arguments.num_images} must be 1 or more")
    if not 0 <= arguments.truncation <= 1:
        raise UserError(f"--truncation {arguments.truncation} is not between 0 and 1")
    check_guidance(arguments.guidance, "--guidance")


def _count(pictures: int) -> str:
    return f"{pictures:,} picture{'s' * (pictures != 1)}"


def _file_name(row: int, k: int, num_images: int, kind: str) -> str:
    return f"{row:06d}.{kind}" if num_images == 1 else f"{row:06d}-{k}.{kind}"


class _Told:
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


def facts(model: TextToImage, arguments: argparse.Namespace) -> dict[str, Any]:
    """Where a picture comes from, besides its prompt and seed."""
    return {
        "model": arguments.model,
        "images_seen": model.description.get("images_seen", ""),
        "truncation": arguments.truncation,
        "guidance": arguments.guidance,
        "software": f"imagen_pl {imagen_pl.__version__}",
    }


def watched(pictures: Iterable[T], total: int) -> Iterator[T]:
    """The same, with a progress bar once it takes more than two seconds."""
    from tqdm import tqdm

    yield from tqdm(
        pictures, total=total, delay=_SHOW_AFTER_S, unit=" pictures", file=sys.stderr, leave=False
    )
