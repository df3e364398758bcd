"""`imagen-pl caption`: print captions of pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.cli.open_model import open_captioner
from imagen_pl.cli.options import add_device_argument, verb_parser
from imagen_pl.errors import UserError

if TYPE_CHECKING:
    from imagen_pl.inference.retrieval_captioning import AnyCaptioner


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "caption",
        description="Print a caption for each picture: the most likely one, or with --num_captions several "
        "random ones. The same picture and seed always give the same caption.",
    )
    parser.add_argument(
        "model",
        help="a captioner's folder, a run or .ckpt that was trained with one, or emoji, which comes with "
        "this package",
    )
    parser.add_argument("image", nargs="+", help="image files to caption")
    parser.add_argument(
        "--num_beams",
        type=int,
        default=1,
        metavar="N",
        help="beams of the beam search; more find likelier captions and take longer (default: 1)",
    )
    parser.add_argument(
        "--num_captions",
        type=int,
        metavar="N",
        help="random captions per picture, in place of the most likely one",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first random caption (default: 0)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per caption: image, caption, seed"
    )
    add_device_argument(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return describe(make_parser().parse_args(words))


def describe(arguments: argparse.Namespace) -> int:
    """Run the verb: print a line for each caption.

    Raises:
        UserError: the arguments do not go together, or a picture is missing or cannot be read.
    """
    for name in ("num_beams", "num_captions"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} must be 1 or more")
    if arguments.num_captions is not None and arguments.num_beams > 1:
        raise UserError(
            "--num_captions samples random captions and --num_beams searches for the most likely one: give "
            "one of them"
        )
    pictures = [Path(name) for name in arguments.image]
    for picture in pictures:
        if not picture.is_file():
            raise UserError(f"{picture}: there is no such file")
    captioner = open_captioner(arguments.model, arguments.device)
    for picture in pictures:
        for k, caption in enumerate(_captions(captioner, picture, arguments)):
            if arguments.json:
                seed = {} if arguments.num_captions is None else {"seed": arguments.seed + k}
                print(json.dumps({"image": str(picture), "caption": caption, **seed}, ensure_ascii=False))
            else:
                print(f"{picture}: {caption}")
    return 0


def _captions(captioner: AnyCaptioner, picture: Path, arguments: argparse.Namespace) -> list[str]:
    from imagen_pl.data.transforms import UNREADABLE

    try:
        if arguments.num_captions is None:
            return [captioner.caption(picture, arguments.num_beams)]
        return captioner.draw(picture, arguments.num_captions, arguments.seed)
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"{picture} cannot be read as a picture ({type(error).__name__})") from error
