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
        notes="`imagen-pl sample --upscaler MODEL` draws and enlarges in one step. With --noise 0.05, for "
        "example, faults of a picture that a model drew may be replaced by detail.",
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
    for file in files:
        if not file.is_file():
            what = "it is a folder, name its pictures" if file.is_dir() else "there is no such file"
            raise UserError(f"{file}: {what}")
    targets = _targets(files, arguments.out)
    check_seed(arguments.seed)
    model_file(arguments.model)  # a wrong name is reported before torch is imported
    from imagen_pl.data.progress import progress_bar
    from imagen_pl.imaging.grids import save_picture
    from imagen_pl.inference.upscaling import check_upscaling, load_upscaler

    check_upscaling(arguments.noise, arguments.tile, "--")
    for file in files:
        read_picture(file)  # one that cannot be read is found before the first is enlarged
    upscaler = load_upscaler(arguments.model, arguments.device)
    about = {"model": arguments.model, "prompt": arguments.prompt, "noise": arguments.noise}
    if not arguments.prompt and not upscaler.model.description.get("caption_dropout"):
        print(f"{arguments.model} was trained with captions alone: say what the picture shows by --prompt")
    total = sum(upscaler.tiles(read_picture(file), arguments.tile) for file in files)
    lines = []
    with progress_bar("upscaling", total, " tiles") as bar:
        for file, target in zip(files, targets, strict=True):
            picture = read_picture(file)
            large = upscaler.upscale(
                picture, arguments.prompt, arguments.noise, arguments.seed, arguments.tile, bar.update
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            save_picture(_savable(large, target), target, {**about, "seed": arguments.seed})
            lines.append(f"{target}: {_size(picture)} to {_size(large)} px")
    print("\n".join(lines))
    return 0


def read_picture(file: Path) -> Image.Image:
    """A picture as it is shown: in sRGB, and turned as EXIF asks. Raises UserError if it cannot be read."""
    from imagen_pl.data.transforms import UNREADABLE, as_shown

    try:
        return as_shown(file)
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
        raise UserError(
            f"--out {out}: two of the enlarged pictures would have one name; use a folder for each of them"
        )
    return targets


def _savable(picture: Image.Image, target: Path) -> Image.Image:
    """A JPEG cannot be transparent: it gets a white background."""
    if picture.mode != "RGBA" or target.suffix.lower() not in (".jpg", ".jpeg"):
        return picture
    from imagen_pl.imaging.transparency import picture_on_white

    return picture_on_white(picture)


def _size(picture: Image.Image) -> str:
    return f"{picture.width} x {picture.height}"
