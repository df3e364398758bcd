"""`imagen-pl data ...`: inspect a data set, caption it, write shards, build emoji and icons, push icons."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from imagen_pl.cli.options import KeptLines, add_device_argument, examples_of
from imagen_pl.errors import UserError

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def run(argv: Sequence[str]) -> int:
    """Run `imagen-pl data ARGV`. Raises UserError for wrong input, SystemExit as argparse does."""
    arguments = _parser().parse_args(argv)
    return int(arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="imagen-pl data", description="Inspect a data set, or make one.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_inspect(verbs)
    _add_captions(verbs)
    _add_shards(verbs)
    _add_emoji(verbs)
    _add_icons(verbs)
    _add_push(verbs)
    return parser


def _add_inspect(verbs: Verbs) -> None:
    inspect = verbs.add_parser(
        "inspect",
        help="print counts, sizes, caption lengths and problems; write a contact sheet",
        description="Print counts, sizes, captions and problems of a data set, and write a contact sheet.",
        epilog=examples_of("data inspect"),
        formatter_class=KeptLines,
    )
    inspect.add_argument(
        "source",
        help="a folder of captioned images, a .parquet file or a folder of them, COCO's captions JSON or "
        'folder, WebDataset shards ("shards/{000..099}.tar"), hf:NAME for a data set on the Hugging Face '
        "hub, or emoji or icons for the included sets",
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
        help="images to decode fully; of shards, images to read (default: %(default)s)",
    )
    inspect.add_argument(
        "--resolution",
        type=_positive,
        default=64,
        help="training resolution, px: `fit` skips images with a side below half of it (default: 64)",
    )
    inspect.set_defaults(run=_inspect)


def _add_captions(verbs: Verbs) -> None:
    captions = verbs.add_parser(
        "captions",
        help="write a caption beside each image that has none",
        description="Caption a folder of images: NAME.txt beside each, which `imagen-pl fit` reads. Images "
        "that have a caption, in a .txt or in metadata.jsonl or .csv, are skipped; so the same command "
        "continues after an interruption.",
        epilog=examples_of("data captions"),
        formatter_class=KeptLines,
    )
    captions.add_argument("folder", help="a folder of images, with subfolders as you like")
    captions.add_argument(
        "--captioner",
        required=True,
        metavar="MODEL",
        help="a captioner's folder, or a run, .ckpt or release that has one: what `imagen-pl caption` takes",
    )
    captions.add_argument(
        "--num_beams",
        type=int,
        default=1,
        metavar="N",
        help="beams of the search; more find likelier captions, and take longer (default: %(default)s)",
    )
    captions.add_argument(
        "--overwrite", action="store_true", help="replace captions in .txt files; starts at the first image"
    )
    add_device_argument(captions)
    captions.set_defaults(run=_captions)


def _add_shards(verbs: Verbs) -> None:
    shards = verbs.add_parser(
        "shards",
        help="write a data set as WebDataset shards",
        description="Write a data set as WebDataset shards, tar files that are read as a stream: for sets of "
        "too many files, or for training over a network. Images are shuffled, splits are kept, and "
        "unreadable images are skipped and counted.",
        epilog=examples_of("data shards"),
        formatter_class=KeptLines,
    )
    shards.add_argument(
        "source", help="a folder, Parquet, COCO, ...: all sources of `imagen-pl data inspect` except shards"
    )
    shards.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new folder, or an empty one"
    )
    size = shards.add_mutually_exclusive_group()
    size.add_argument(
        "--size_mb",
        type=float,
        default=100.0,
        metavar="N",
        help="approximate size of a shard, MB; a training needs at least as many shards as it has loading "
        "processes over all GPUs (default: %(default)g)",
    )
    size.add_argument(
        "--size_images", type=_positive, metavar="N", help="images per shard at most, in place of --size_mb"
    )
    shards.add_argument(
        "--shrink",
        type=_positive,
        metavar="PX",
        help="shrink images to this shorter side, if theirs is longer (default: keep the original bytes)",
    )
    shards.add_argument("--seed", type=int, default=0, help="seed of the shuffling (default: %(default)s)")
    shards.set_defaults(run=_shards)


def _add_emoji(verbs: Verbs) -> None:
    emoji = verbs.add_parser(
        "emoji",
        help="rebuild the emoji data set, up to 256 px",
        description="Build the emoji data set as one Parquet file, from npm packages.",
        epilog=examples_of("data emoji"),
        formatter_class=KeptLines,
    )
    emoji.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    emoji.add_argument(
        "--size", type=int, default=64, help="side of the images, 8 to 256 px (default: %(default)s)"
    )
    emoji.add_argument(
        "--packages",
        type=Path,
        help="folder with the npm packages as .tgz files (default: npm downloads them)",
    )
    emoji.set_defaults(run=_emoji)


def _add_icons(verbs: Verbs) -> None:
    icons = verbs.add_parser(
        "icons",
        help="build the data set of open icons, 32 to 512 px",
        description="Draw the open icons of the npm package @iconify/json, over 300,000 in 207 sets, as "
        "Parquet files with captions and splits by subject. Sets of logos are left out. ATTRIBUTION.md "
        "credits each set. The same command continues after an interruption.",
        epilog=examples_of("data icons"),
        formatter_class=KeptLines,
    )
    icons.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    icons.add_argument(
        "--size", type=int, default=64, help="side of the pictures, 32 to 512 px (default: %(default)s)"
    )
    icons.add_argument(
        "--licences",
        nargs="+",
        metavar="SPDX",
        help="licences of the sets to take (default: the open ones without share-alike, such as MIT, "
        "Apache-2.0, CC-BY-4.0 and CC0-1.0)",
    )
    icons.add_argument(
        "--sets", nargs="+", metavar="PREFIX", help="sets to take, such as tabler mdi ph (default: all)"
    )
    icons.add_argument(
        "--least_sets",
        type=_positive,
        default=1,
        metavar="N",
        help="leave out subjects that fewer sets draw (default: %(default)s, which takes all)",
    )
    icons.add_argument(
        "--background",
        choices=["white", "transparent"],
        default="white",
        help="transparent keeps an alpha channel (default: %(default)s)",
    )
    icons.add_argument(
        "--ink",
        default="black",
        help="colour of icons that have none of their own, a name or #rrggbb (default: %(default)s)",
    )
    icons.add_argument(
        "--packages",
        type=Path,
        help="folder with the npm packages as .tgz files (default: npm downloads them)",
    )
    icons.add_argument(
        "--jobs", type=_positive, metavar="N", help="processes that draw (default: one for each CPU core)"
    )
    icons.set_defaults(run=_icons)


def _add_push(verbs: Verbs) -> None:
    push = verbs.add_parser(
        "push",
        help="upload built icons as a data set to the Hugging Face hub",
        description="Upload a folder that `imagen-pl data icons` wrote to the Hugging Face hub: Parquet "
        "files by split, a card with columns and licences, and ATTRIBUTION.md.",
        epilog=examples_of("data push"),
        formatter_class=KeptLines,
    )
    push.add_argument("folder", type=Path, help="the folder that `imagen-pl data icons` wrote")
    push.add_argument("hub_id", metavar="OWNER/NAME", help="the data set's name on the hub")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument(
        "--out", type=Path, metavar="DIR", help="write the files to this new folder, and upload nothing"
    )
    push.set_defaults(run=_push)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def _inspect(arguments: argparse.Namespace) -> int:
    from imagen_pl.data.inspect import inspect_source

    report = inspect_source(arguments.source, arguments.out, arguments.limit, arguments.resolution)
    for line in report.lines():
        print(line)
    return 0


def _captions(arguments: argparse.Namespace) -> int:
    from imagen_pl.cli.caption_folder import caption_folder

    return caption_folder(arguments)


def _shards(arguments: argparse.Namespace) -> int:
    from imagen_pl.data.inspect import guess_source
    from imagen_pl.data.shards import write_shards
    from imagen_pl.data.sources.base import StreamSource

    source = guess_source(arguments.source)
    if isinstance(source, StreamSource):
        raise UserError(
            f"{arguments.source} holds shards already: train from it with "
            f"--config configs/data/webdataset.yaml --data.source.path {arguments.source}"
        )
    done = write_shards(
        source, arguments.out, arguments.size_mb, arguments.size_images, arguments.shrink, arguments.seed
    )
    for line in done.lines():
        print(line)
    return 0


def _emoji(arguments: argparse.Namespace) -> int:
    from imagen_pl.data.build_emoji import PIXELS_SIZE, SHIPPED_IMAGES, build_emoji, missing_drawings

    if arguments.size > PIXELS_SIZE:
        print(
            f"drawing about {SHIPPED_IMAGES:,} images of {arguments.size} px, two thirds from SVG files: "
            "this takes minutes; the bar shows the time left",
            file=sys.stderr,
        )
    counts = build_emoji(arguments.out, arguments.size, arguments.packages)
    for split in dict.fromkeys(split for split, _ in counts):
        styles = {style: n for (s, style), n in counts.items() if s == split}
        print(
            f"{split:<12}{sum(styles.values()):>6}: "
            + ", ".join(f"{s} {n}" for s, n in sorted(styles.items()))
        )
    print(f"{counts.total()} images of {arguments.size} px in {arguments.out}")
    for line in missing_drawings(counts, arguments.size):
        print(line)
    return 0


def _push(arguments: argparse.Namespace) -> int:
    import tempfile

    from imagen_pl.data.icons_for_hub import check_icons, prepare_icons
    from imagen_pl.storage.hub_upload import check_hub, check_hub_name, upload

    check_icons(arguments.folder)
    if arguments.out is not None:
        if arguments.private:
            raise UserError(
                "--private has no effect with --out, which uploads nothing: leave one of them out"
            )
        check_hub_name(arguments.hub_id)
        for line in prepare_icons(arguments.folder, arguments.out, arguments.hub_id).lines():
            print(line)
        print(f"written to {arguments.out}; nothing was uploaded")
        return 0
    check_hub(arguments.hub_id)
    with tempfile.TemporaryDirectory() as folder:
        done = prepare_icons(arguments.folder, Path(folder), arguments.hub_id)
        upload(Path(folder), arguments.hub_id, arguments.private, "dataset")
    for line in done.lines():
        print(line)
    print(f'uploaded as {arguments.hub_id}: load_dataset("{arguments.hub_id}") reads it')
    return 0


def _icons(arguments: argparse.Namespace) -> int:
    from imagen_pl.data.build_icons import build_icons

    built = build_icons(
        arguments.out,
        arguments.size,
        arguments.licences,
        arguments.sets,
        arguments.background,
        arguments.ink,
        arguments.packages,
        arguments.jobs,
        arguments.least_sets,
    )
    for line in built.lines():
        print(line)
    print(f"written to {arguments.out}; ATTRIBUTION.md has the credits that the licences ask for")
    return 0
