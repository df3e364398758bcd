"""`imagen-pl data ...`: look into a data set, rebuild the emoji."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Run `imagen-pl data ARGV`. Raises UserError for what the user can mend, SystemExit as argparse does."""
    arguments = _parser().parse_args(argv)
    return int(arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="imagen-pl data", description="Look into a data set, or make one.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    inspect = verbs.add_parser(
        "inspect",
        help="print counts, sizes, caption lengths and problems; write a contact sheet",
        description="Print what a data set holds and what is wrong with it, and write a contact sheet.",
    )
    inspect.add_argument(
        "source",
        help="a folder of captioned images, a .parquet file or a folder of them, COCO's captions JSON or "
        'folder, WebDataset shards ("shards/{000..099}.tar"), hf:NAME for a data set on the Hugging Face '
        "hub, or emoji for the set that ships",
    )
    inspect.add_argument(
        "--out",
        type=Path,
        default=Path("contact_sheet.png"),
        help="PNG file for the contact sheet (default: %(default)s)",
    )
    inspect.add_argument(
        "--limit",
        type=_positive,
        default=2000,
        help="images to decode whole; of shards, images to read (default: %(default)s)",
    )
    inspect.set_defaults(run=_inspect)

    emoji = verbs.add_parser(
        "emoji",
        help="rebuild the emoji data set, up to 256 px",
        description="Build the emoji data set as one Parquet file, from npm packages.",
    )
    emoji.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    emoji.add_argument(
        "--size", type=int, default=64, help="side of the images, 8 to 256 px (default: %(default)s)"
    )
    emoji.add_argument(
        "--packages", type=Path, help="folder with the packages' .tgz files; without it npm fetches them"
    )
    emoji.set_defaults(run=_emoji)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def _inspect(arguments: argparse.Namespace) -> int:
    from imagen_pl.data.inspect import inspect_source

    for line in inspect_source(arguments.source, arguments.out, arguments.limit).lines():
        print(line)
    return 0


def _emoji(arguments: argparse.Namespace) -> int:
    from imagen_pl.data.emoji import build_emoji

    counts = build_emoji(arguments.out, arguments.size, arguments.packages)
    for split in dict.fromkeys(split for split, _ in counts):
        styles = {style: n for (s, style), n in counts.items() if s == split}
        print(
            f"{split:<12}{sum(styles.values()):>6}: "
            + ", ".join(f"{s} {n}" for s, n in sorted(styles.items()))
        )
    print(f"{counts.total()} images of {arguments.size} px in {arguments.out}")
    return 0
