"""`imagen-pl translate`: translate pictures to other domains."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.cli.drawing import check_num_images, check_picture_path, check_prompts, check_seed
from imagen_pl.cli.open_model import open_model
from imagen_pl.cli.options import add_device_argument, add_model_argument, verb_parser
from imagen_pl.cli.project import read_pictures
from imagen_pl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from imagen_pl.inference.pipeline import TextToImage


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "translate",
        description="Translate pictures to other domains, such as icons to the style of another set, with a "
        "trained translator. The style in a domain comes from a seed, or from a reference picture.",
        notes="The grid has a row for each picture: the picture, then its translations.",
    )
    add_model_argument(parser)
    parser.add_argument("image", nargs="+", help="picture files; the centre square is used")
    parser.add_argument(
        "--to",
        nargs="+",
        required=True,
        metavar="DOMAIN",
        help='captions of the domains, as in training, for example "Phosphor, fill"; columns of their own',
    )
    parser.add_argument(
        "--like", metavar="FILE", help="a picture of the domain whose style the translations get"
    )
    parser.add_argument(
        "--num_images",
        type=int,
        default=1,
        metavar="N",
        help="translations for each picture and domain, each in the style of another seed (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first style (default: 0)")
    parser.add_argument(
        "--out",
        default="translated.png",
        metavar="FILE",
        help="the grid: .png, .webp or .jpg (default: translated.png)",
    )
    parser.add_argument(
        "--singles", metavar="DIR", help="also write each translation to a file of its own in this folder"
    )
    add_device_argument(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return translate(make_parser().parse_args(words))


def translate(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: an argument is out of range, a picture cannot be read, or the model does not translate.
    """
    out, files = Path(arguments.out), [Path(name) for name in arguments.image]
    check_picture_path(out)
    check_num_images(arguments.num_images)
    check_seed(arguments.seed)
    check_prompts(arguments.to)
    like = None if arguments.like is None else Path(arguments.like)
    if like is not None and arguments.num_images > 1:
        raise UserError("--num_images draws several styles, and --like gives one: leave one of them out")
    for file in (*files, *([] if like is None else [like])):
        if not file.is_file():
            raise UserError(f"{file}: there is no such file")
        if out.resolve() == file.resolve():
            raise UserError(f"--out {out} is a picture to read: name another file")
    model = open_model(arguments.model, arguments.device, draws=False)
    from imagen_pl.inference.translation import translatable, unknown_domain

    translatable(model.generator)
    for domain in arguments.to:
        if warning := unknown_domain(model, domain):
            print(f"Warning: {warning}", file=sys.stderr)
    rows, labels = _columns(model, files, like, arguments)
    from imagen_pl.imaging.grids import labelled_grid, save_picture

    pictures = [column[row] for row in range(len(files)) for column in rows]
    names = [label or file.name for file in files for label in labels]
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"model": arguments.model, "to": "\n".join(arguments.to), "seed": arguments.seed}
    about |= {} if like is None else {"like": like.name}
    save_picture(labelled_grid(pictures, names, columns=len(rows)), out, about)
    first = 1 if like is None else 2
    if arguments.singles is not None:
        _write_singles(files, rows[first:], labels[first:], Path(arguments.singles), about)
    print(f"{out}: one row for each picture, then {', '.join(map(repr, arguments.to))}")
    return 0


def _columns(
    model: TextToImage, files: Sequence[Path], like: Path | None, arguments: argparse.Namespace
) -> tuple[list[list[Image.Image]], list[str]]:
    """Columns of the grid, and their labels: the pictures with an empty one, the reference, translations."""
    from imagen_pl.imaging.grids import to_pil, to_uint8
    from imagen_pl.inference.translation import translated

    images = read_pictures(model, files)
    reference = None if like is None else read_pictures(model, [like])
    columns, labels = [to_pil(to_uint8(images))], [""]
    if reference is not None and like is not None:
        columns.append(to_pil(to_uint8(reference)) * len(files))
        labels.append(f"like {like.name}")
    for domain in arguments.to:
        for k in range(arguments.num_images):
            drawn = translated(model, images, domain, arguments.seed + k, reference)
            columns.append(to_pil(to_uint8(drawn)))
            labels.append(domain)
    return columns, labels


def _write_singles(
    files: Sequence[Path],
    columns: Sequence[Sequence[Image.Image]],
    domains: Sequence[str],
    folder: Path,
    about: dict[str, object],
) -> None:
    """bell-00.png, bell-01.png, ... for bell.png, in the order of the grid's columns."""
    from imagen_pl.imaging.grids import save_picture

    stems = [file.stem for file in files]
    if len(set(stems)) < len(stems):
        raise UserError(f"--singles {folder}: two pictures have the same name; translate them one by one")
    folder.mkdir(parents=True, exist_ok=True)
    for row, stem in enumerate(stems):
        for k, (column, domain) in enumerate(zip(columns, domains, strict=True)):
            save_picture(column[row], folder / f"{stem}-{k:02d}.png", {**about, "to": domain})
    print(f"{folder}: {len(stems) * len(columns)} pictures")
