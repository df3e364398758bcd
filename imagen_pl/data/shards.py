"""Writes a data set as WebDataset shards: shuffled tar files, which are read as a stream."""

from __future__ import annotations

import io
import json
import re
import shlex
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from imagen_pl.data.progress import progress_bar
from imagen_pl.data.resize import shrink
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row, Source, stable_hash
from imagen_pl.data.transforms import UNREADABLE, decode, quiet_pillow
from imagen_pl.errors import UserError
from imagen_pl.storage.atomic_files import atomic_write

_THREADS = 4
_PART = 64  # images in memory at once
_TRIED = 256  # images that the mean size is estimated from
_TEST_RESOLUTION = 8  # px; decoding to this size is fast, but still reads the whole file
_GUESS = 100_000  # bytes an image, if none of the tried ones could be read
_TAR = 2048  # bytes of tar overhead per image
# By the format of the bytes, not by the name of the original file.
_ENDINGS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
}


@dataclass
class Sharded:
    """The written shards.

    out: the folder.
    total: number of images in the source.
    problems: images left out.
    shards: files by split.
    images: number of images in the shards, by split.
    """

    out: Path
    total: int
    problems: SkippedImages
    shards: dict[str, list[Path]] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for split, files in self.shards.items():
            size = sum(file.stat().st_size for file in files)
            yield f"{split:<12}{self.images[split]:>8,} images, {size / 1e6:,.1f} MB: {_range(files)}"
        if self.problems.total():
            yield f"skipped {self.problems.total():,} of {self.total:,} images: {self.problems.summary()}"
        if "validation" not in self.shards:
            yield "splits      no validation: data.val_fraction of the train shards will be held out"
        yield (
            "Train: imagen-pl fit --config configs/experiment/folder64.yaml --config "
            f"configs/data/webdataset.yaml --data.source.path {shlex.quote(str(self.out))}"
        )


def write_shards(
    source: Source,
    out: Path,
    size_mb: float = 100.0,
    size_images: int | None = None,
    largest_side: int | None = None,
    seed: int = 0,
) -> Sharded:
    """Write SPLIT-000000.tar and so on: 000000000.jpg with its .txt, or with its .json for several captions.

    The images of a split are shuffled and spread evenly over its shards; without a validation split there are
    two train shards or more, so that one can be held out. The same source and seed give the same files to
    the bit. Shards are written atomically; if the work is interrupted, all of them are removed.

    Args:
        source: gives images, captions and splits.
        out: a new folder, or an empty one.
        size_mb: approximate size of a shard, in millions of bytes.
        size_images: largest number of images in a shard; overrides `size_mb`.
        largest_side: shrink images whose shorter side is longer, px; None keeps the original bytes.
        seed: of the order.

    Raises:
        UserError: an argument is out of range, there is nothing to train on, or the disk is full.
    """
    if size_mb <= 0:
        raise UserError(f"--size_mb {size_mb:g} must be more than 0")
    _check_out(out, source.path)
    problems = SkippedImages()
    loaded = source.load(problems)
    report = Sharded(out, sum(map(len, loaded.values())) + problems.total(), problems)
    with quiet_pillow(), ThreadPoolExecutor(_THREADS) as pool:
        reader = _Reader(source, largest_side, problems, pool)
        rows, each = {}, {}
        for split, found in _captioned(loaded, problems).items():
            rows[split], size = reader.try_some(_shuffled(found, split, seed))
            each[split] = size_images or max(1, int(size_mb * 1e6 / size))
        least = 1 if rows.get("validation") else 2
        _check_train(source.path, rows, least, problems)
        with (
            _all_or_none(out) as written,
            progress_bar("writing shards", sum(map(len, rows.values()))) as bar,
        ):
            for split, found in rows.items():
                count = max(-(-len(found) // each[split]), least if split == "train" else 1)
                for k in range(count):
                    part = found[len(found) * k // count : len(found) * (k + 1) // count]
                    _write_shard(split, reader.read(part, bar.update), report, written)
    return report


class _Reader:
    """Reads images in parallel.

    Args:
        source: of the images.
        largest_side: as in `write_shards`.
        problems: counts the images that cannot be read.
        pool: threads, which read and decode.
    """

    def __init__(
        self, source: Source, largest_side: int | None, problems: SkippedImages, pool: ThreadPoolExecutor
    ) -> None:
        self.source, self.largest_side, self.problems, self.pool = source, largest_side, problems, pool

    def try_some(self, rows: list[Row]) -> tuple[list[Row], float]:
        """The rows without unreadable ones among the first 256, and the mean size in a tar file, bytes."""
        tried = [(row, len(data)) for row, data, _ in self.read(rows[:_TRIED])]
        mean = sum(size for _, size in tried) / len(tried) if tried else _GUESS
        return [row for row, _ in tried] + rows[_TRIED:], mean + _TAR

    def read(
        self, rows: Sequence[Row], done: Callable[[], object] = lambda: None
    ) -> Iterator[tuple[Row, bytes, str]]:
        """The encoded image and its suffix for each readable row; `done` is called for every row."""
        for i in range(0, len(rows), _PART):
            part = rows[i : i + _PART]
            for row, found in zip(part, self.pool.map(self._open, part), strict=True):
                done()
                if isinstance(found, str):
                    self.problems.add(found, row.name)
                else:
                    yield row, *found

    def _open(self, row: Row) -> tuple[bytes, str] | str:
        try:
            image = self.source.image(row)
            data = image if isinstance(image, bytes) else image.read_bytes()
            if self.largest_side is not None:
                data = shrink(data, self.largest_side)
            decode(data, _TEST_RESOLUTION)
            with Image.open(io.BytesIO(data)) as opened:
                return data, _ENDINGS.get(opened.format or "", "png")
        except FileNotFoundError:
            return "missing"
        except UNREADABLE:
            return "unreadable"


def _write_shard(
    split: str, samples: Iterator[tuple[Row, bytes, str]], report: Sharded, written: list[Path]
) -> None:
    first = next(samples, None)
    if first is None:  # none of its images could be read
        return
    shards = report.shards.setdefault(split, [])
    number = report.images.get(split, 0)
    path = report.out / f"{split}-{len(shards):06}.tar"
    with atomic_write(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for row, data, ending in chain([first], samples):
            name = f"{number:09}"
            _add(tar, f"{name}.{ending}", data)
            if len(row.captions) == 1:
                _add(tar, f"{name}.txt", row.captions[0].encode())
            else:
                captions = json.dumps({"captions": row.captions}, ensure_ascii=False)
                _add(tar, f"{name}.json", captions.encode())
            number += 1
    written.append(path)
    shards.append(path)
    report.images[split] = number


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no time and no owner, so that the files are reproducible to the bit
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _captioned(splits: dict[str, list[Row]], problems: SkippedImages) -> dict[str, list[Row]]:
    """Rows with captions, by the split's name as used in file names."""
    found: dict[str, list[Row]] = {}
    for split, rows in splits.items():
        good = [row for row in rows if row.captions]
        for row in rows:
            if not row.captions:
                problems.add("with an empty caption", row.name)
        if good:
            found.setdefault(re.sub(r"[^a-z0-9]", "", split.lower()) or "other", []).extend(good)
    return found


def _shuffled(rows: list[Row], split: str, seed: int) -> list[Row]:
    order = np.random.default_rng([seed % 2**64, stable_hash(split)]).permutation(len(rows))
    return [rows[i] for i in order]


def _check_out(out: Path, path: str) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty: name a new folder")
    if Path(path).is_dir() and out.resolve().is_relative_to(Path(path).resolve()):
        raise UserError(f"--out {out} lies within {path}, which would then hold both: name another folder")


def _check_train(path: str, rows: dict[str, list[Row]], least: int, problems: SkippedImages) -> None:
    count = len(rows.get("train", []))
    if count >= least:
        return
    have = ", ".join(f"{split} ({len(found)})" for split, found in rows.items() if split != "train" and found)
    skipped = f"; skipped {problems.summary()}" if problems.total() else ""
    if count == 0:
        raise UserError(f"{path}: no images to train on{f'; it has only {have}' if have else ''}{skipped}")
    raise UserError(
        f"{path} has 1 image to train on: give at least 2, so that one can be held out for validation"
        f"{skipped}"
    )


@contextmanager
def _all_or_none(out: Path) -> Iterator[list[Path]]:
    """Deletes the files on the list, and the folder if it is new, if the work is interrupted."""
    made, written = not out.exists(), list[Path]()
    try:
        yield written
    except BaseException:  # Ctrl-C too: half a data set would pass for a complete one
        for file in written:
            file.unlink(missing_ok=True)
        if made:
            with suppress(OSError):
                out.rmdir()
        raise


def _range(files: list[Path]) -> str:
    """As shards/train-{000000..000007}.tar, which `webdataset` and data.source.path take."""
    if len(files) == 1:
        return str(files[0])
    first, last = (file.stem.rsplit("-", 1) for file in (files[0], files[-1]))
    return str(files[0].with_name(f"{first[0]}-{{{first[1]}..{last[1]}}}.tar"))
