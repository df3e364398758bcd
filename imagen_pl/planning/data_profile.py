"""Statistics of a data set for a plan: number and size of its images, and captions per image."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from imagen_pl.data.inspect import common_shape, guess_source
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row, Source, StreamSource
from imagen_pl.data.splits import by_group, held_out
from imagen_pl.data.transforms import UNREADABLE, quiet_pillow, read_size
from imagen_pl.errors import UserError

VAL_FRACTION = 0.05
_HEADERS = 2000  # images whose size is read; of a stream, images that are read at all
_KEPT = 64  # images in the sample for measuring the speed
_CUT = 0.75  # a crop to the middle square that keeps less of an image than this counts in `cropped`


@dataclass(frozen=True)
class DataProfile:
    """Statistics of a data set.

    path: as the user gave it.
    source_class: class path of the source, for `data.source`.
    source_args: its `init_args`.
    images: images to train on, validation held out.
    held_out: images that `data.val_fraction` holds out; 0 if the source has a validation split of its own.
    groups: the same as `images`, with groups of near-duplicates (the skin tones of an emoji) counted once.
    side: median of the shorter side, px.
    captions_per_image: mean number of captions per image.
    images_per_caption: mean number of images per caption.
    shared: share of the images whose captions belong to other images as well, 0 to 1.
    cropped: share of the images that lose over a quarter to the middle square, 0 to 1.
    shape: width / height that most images are near to; 1 where there is none.
    validates: images are held out for validation, by the source or by `data.val_fraction`.
    is_stream: the images are in shards, and the counts are estimated from the first ones.
    sample: rows from all over the set, for measuring the speed.
    source: opens the rows of the sample.
    """

    path: str
    source_class: str
    source_args: dict[str, Any]
    images: int
    groups: int
    side: int
    captions_per_image: float
    images_per_caption: float
    shared: float
    cropped: float
    shape: float = 1.0
    validates: bool = True
    is_stream: bool = False
    held_out: int = 0
    sample: Sequence[Row] = field(default=(), repr=False)
    source: Source | None = field(default=None, repr=False)

    def lines(self) -> list[str]:
        """The statistics as text for the user."""
        about = "about " if self.is_stream else ""
        alike = f" ({self.groups:,} without near-duplicates)" if self.groups < self.images else ""
        held = f" ({self.held_out:,} more are held out for validation)" if self.held_out else ""
        return [
            f"{self.path}: {about}{self.images:,} images to train on{alike}{held}, half of them "
            f"{self.side} px or more",
            f"{self.captions_per_image:.1f} captions per image, {self.images_per_caption:.1f} images "
            "per caption",
        ]


def profile(path: str) -> DataProfile:
    """Read a data set: all captions, and the sizes of up to 2,000 images (only their headers).

    Args:
        path: what `imagen-pl data inspect` takes.

    Raises:
        UserError: the source does not exist, or has no usable image.
    """
    source = guess_source(path)
    if isinstance(source, StreamSource):
        return _profile_stream(path, source)
    loaded = held_out(source, "validation", 0.0)
    rows = [row for row in loaded.train if row.captions]
    step = max(1, len(rows) // _HEADERS)
    sizes = _sizes(source, rows[::step])
    usable = [row for row, _ in sizes]
    if not usable:
        raise UserError(
            f"{path}: no image of {len(rows)} can be read: `imagen-pl data inspect {path}` says why"
        )
    validates = bool(loaded.validation) or len(rows) > 1
    train_share = 1.0 if loaded.validation or len(rows) < 2 else 1 - VAL_FRACTION
    images = max(1, round(len(rows) * train_share))
    return DataProfile(
        path=path,
        **_source(path, source),
        images=images,
        held_out=len(rows) - images,
        groups=max(1, round(len(by_group(rows)) * train_share)),
        **_of_captions(rows),
        **_of_sizes([size for _, size in sizes]),
        validates=validates,
        sample=usable[:: max(1, len(usable) // _KEPT)][:_KEPT],
        source=source,
    )


def _profile_stream(path: str, source: StreamSource) -> DataProfile:
    splits = source.shards()
    shards = splits.get("train", [])
    if not shards:
        raise UserError(f"{path}: no shards to train on")
    validates = "validation" in splits or len(shards) > 1
    problems = SkippedImages()
    rows: list[Row] = []
    read, read_bytes = 0, 0  # whole shards that were read
    images = 0
    for shard in shards:
        found = [
            Row(row.name, row.captions, data)
            for row, data in islice(source.read(shard, problems), _HEADERS - len(rows))
            if row.captions
        ]
        rows += found
        if len(rows) >= _HEADERS:
            images = images or len(rows)
            break
        read, read_bytes, images = read + 1, read_bytes + _bytes_of(shard), len(rows)
    total_bytes = sum(map(_bytes_of, shards))
    if read_bytes:
        images = round(images * total_bytes / read_bytes)
    elif total_bytes:  # not even one shard was read to its end
        images = round(len(rows) * total_bytes / max(1, sum(len(row.place) for row in rows)))
    elif read:
        images = round(images * len(shards) / read)
    opener = SampleRows(path, rows)
    sizes = _sizes(opener, rows)
    if not sizes:
        raise UserError(f"{path}: no image can be used: {problems.summary() or 'there are no captions'}")
    if "validation" not in splits and validates:
        images = round(images * (len(shards) - max(1, int(VAL_FRACTION * len(shards)))) / len(shards))
    usable = [row for row, _ in sizes]
    return DataProfile(
        path=path,
        **_source(path, source),
        images=max(1, images),
        groups=max(1, images),
        **_of_captions(rows),
        **_of_sizes([size for _, size in sizes]),
        validates=validates,
        is_stream=True,
        sample=usable[:: max(1, len(usable) // _KEPT)][:_KEPT],
        source=opener,
    )


class SampleRows(Source):
    """A small data set for measuring the speed: rows in memory, or rows that another source opens."""

    def __init__(self, path: str, rows: Sequence[Row], source: Source | None = None) -> None:
        self.path, self.rows, self.source = path, rows, source

    def load(self, problems: SkippedImages) -> dict[str, list[Row]]:
        return {"train": list(self.rows)}

    def image(self, row: Row) -> bytes | Path:
        if self.source is not None:
            return self.source.image(row)
        assert isinstance(row.place, bytes)
        return row.place


def _source(path: str, source: Source | StreamSource) -> dict[str, Any]:
    kind = type(source)
    # The emoji ship with the package: no path of this machine.
    arguments = {} if path in ("emoji", "icons") else {"path": source.path}
    return {"source_class": f"{kind.__module__}.{kind.__name__}", "source_args": arguments}


def _sizes(source: Source, rows: Sequence[Row]) -> list[tuple[Row, tuple[int, int]]]:
    """Width and height, px, of the images that can be read."""

    def size(row: Row) -> tuple[int, int] | None:
        try:
            return read_size(source.image(row))
        except UNREADABLE:
            return None

    with quiet_pillow(), ThreadPoolExecutor(8) as pool:
        return [(row, found) for row, found in zip(rows, pool.map(size, rows), strict=True) if found]


def _of_sizes(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    return {
        "side": statistics.median_low(min(size) for size in sizes),
        "cropped": sum(min(size) < _CUT * max(size) for size in sizes) / len(sizes),
        "shape": common_shape(sizes),
    }


def _of_captions(rows: Sequence[Row]) -> dict[str, Any]:
    captions = [set(row.captions) for row in rows]  # one image may name a caption twice
    images_of = Counter(caption for each in captions for caption in each)
    shared = sum(any(images_of[caption] > 1 for caption in each) for each in captions)
    return {
        "captions_per_image": sum(map(len, captions)) / len(rows),
        "images_per_caption": sum(images_of.values()) / len(images_of),
        "shared": shared / len(rows),
    }


def _bytes_of(shard: str) -> int:
    """Size of a shard on this machine's disk; 0 if it is on the network."""
    try:
        return os.path.getsize(shard)
    except OSError:
        return 0
