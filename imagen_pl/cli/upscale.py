"""`imagen-pl upscale`: enlarge pictures with a trained upsampler."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.cli.drawing import PICTURE_SUFFIXES, check_seed
from imagen_pl.cli.options import add_device_argument, add_model_argument, verb_parser
from imagen_pl.errors import UserError
from imagen_pl.storage.model_paths import model_file

if TYPE_CHECKING:
    from PIL import Image


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "upscale",
        description="Enlarge pictures of any size. Large ones are enlarged in tiles that leave no seams; "
        "transparency is kept.",
        notes="A picture of yours needs no --noise. For one that a model drew, --noise 0.1 lets the "
        "upsampler replace faults by detail; `imagen-pl sample --upscaler MODEL` does both in one step.",
    )
    add_model_argument(parser)
    parser.add_argument("image", nargs="+", help="picture files")
    parser.add_argument(
        "--prompt", default="", help='what they show, as "bell, outline" (default: not known)'
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.0,
        metavar="N",
        help="standard deviation of noise that is added first, 0 to 1 (default: 0)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        default=256,
        metavar="PX",
        help="side of the tiles, px of the small picture; smaller ones take less memory (default: 256)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("upscaled"),
        help="folder for the enlarged pictures, with the names of the given ones; for a single picture also "
        "a .png, .webp or .jpg file (default: upscaled)",
    )
    add_device_argument(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return upscale(make_parser().parse_args(words))


def upscale(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: an argument is out of range, a picture cannot be read, a file would be overwritten by
            another, or the model does not enlarge pictures.
    """
    files = [Path(name) for name in arguments.image]
    targets = _targets(files, arguments.out)
    check_seed(arguments.seed)
    model_file(arguments.model)  # a wrong name is reported before torch is imported
    from imagen_pl.data.progress import progress_bar
    from imagen_pl.imaging.grids import save_picture
    from imagen_pl.inference.upscaling import check_upscaling, load_upscaler

    check_upscaling(arguments.noise, arguments.tile, "--")
    pictures = [read_picture(file) for file in files]
    upscaler = load_upscaler(arguments.model, arguments.device)
    about = {"model": arguments.model, "prompt": arguments.prompt, "noise": arguments.noise}
    total = sum(upscaler.tiles(picture, arguments.tile) for picture in pictures)
    lines = []
    with progress_bar("upscaling", total, " tiles") as bar:
        for picture, target in zip(pictures, targets, strict=True):
            large = upscaler.upscale(
                picture, arguments.prompt, arguments.noise, arguments.seed, arguments.tile, bar.update
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            save_picture(_savable(large, target), target, {**about, "seed": arguments.seed})
            lines.append(f"{target}: {_size(picture)} to {_size(large)} px")
    print("\n".join(lines))
    return 0


def read_picture(file: Path) -> Image.Image:
    """A picture as it is shown: turned as EXIF asks.

    Raises:
        UserError: it is missing or cannot be read.
    """
    from PIL import Image, ImageOps

    from imagen_pl.data.transforms import UNREADABLE, wide_grey_to_rgb

    if not file.is_file():
        raise UserError(f"{file}: there is no such file")
    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened)
            return wide_grey_to_rgb(picture) if picture.mode.startswith(("I", "F")) else picture.copy()
    except UNREADABLE as error:
        raise UserError(f"{file} cannot be read as a picture ({type(error).__name__})") from error


def _targets(files: Sequence[Path], out: Path) -> list[Path]:
    """Where each picture goes."""
    if out.suffix.lower() in PICTURE_SUFFIXES and not out.is_dir():
        if len(files) > 1:
            raise UserError(f"--out {out} holds one picture: name a folder for {len(files)} of them")
        targets = [out]
    elif out.is_file():
        raise UserError(f"--out {out} is a file that is no .png, .webp or .jpg: name a folder")
    else:
        keep = {suffix: suffix for suffix in PICTURE_SUFFIXES}
        targets = [out / (file.stem + keep.get(file.suffix.lower(), ".png")) for file in files]
    for file, target in zip(files, targets, strict=True):
        if target.resolve() == file.resolve():
            raise UserError(f"--out {out} would replace {file}: name another folder or file")
    if len(set(targets)) < len(targets):
        raise UserError(f"--out {out}: two pictures have the same name; enlarge them one by one")
    return targets


def _savable(picture: Image.Image, target: Path) -> Image.Image:
    """A JPEG cannot be transparent: it gets a white background."""
    if picture.mode != "RGBA" or target.suffix.lower() not in (".jpg", ".jpeg"):
        return picture
    from PIL import Image

    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _size(picture: Image.Image) -> str:
    return f"{picture.width} x {picture.height}"
