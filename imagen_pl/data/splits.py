"""Training rows, validation rows, and rows that cannot be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from imagen_pl.data.progress import with_progress
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row, Source, StreamSource, stable_hash
from imagen_pl.data.transforms import UNREADABLE, quiet_pillow, read_size
from imagen_pl.errors import UserError

Item = TypeVar("Item")

_PART = 64


@dataclass
class LoadedSplits:
    """A source's rows, by split.

    source: opens the rows' images; for a stream, its validation images in memory.
    train: rows to train on; empty for a stream.
    validation: rows to score.
    problems: images left out.
    total: number of rows of both splits, skipped ones included.
    shards: for a stream, the shards to train on.
    """

    source: Source
    train: list[Row]
    validation: list[Row]
    problems: SkippedImages
    total: int = 0
    shards: list[str] = field(default_factory=list)


def held_out(source: Source, val_split: str, val_fraction: float) -> LoadedSplits:
    """Load a source; if it has no validation split, hold out a part of its training rows."""
    problems = SkippedImages()
    splits = source.load(problems)
    total = sum(map(len, splits.values()))
    train = splits.get("train", [])
    if not train:
        have = ", ".join(f"{name} ({len(rows)})" for name, rows in splits.items() if rows)
        raise UserError(
            f"{source.path}: no images to train on; "
            + (f"it has only {have}" if have else problems.summary())
        )
    if val_split in splits:
        return LoadedSplits(source, train, splits[val_split], problems, total + problems.total())
    if val_split != "validation":
        mend = "; `imagen-pl validate` scores the validation images" if val_split == "test" else ""
        raise UserError(f"{source.path} has no split {val_split}: it has {', '.join(splits)}{mend}")
    validation: list[Row] = []
    if val_fraction > 0:
        if len(train) < 2:
            raise UserError(
                f"{source.path} has 1 image: give at least 2, or data.val_fraction 0 to go without validation"
            )
        by_hash = {row.name: stable_hash(row.name) for row in train}
        chosen = {name for name, number in by_hash.items() if number < val_fraction * 2**64}
        if not 0 < len(chosen) < len(by_hash):
            chosen = {min(by_hash, key=lambda name: by_hash[name])}
        validation = [row for row in train if row.name in chosen]
        train = [row for row in train if row.name not in chosen]
    return LoadedSplits(source, train, validation, problems, total + problems.total())


def check_rows(loaded: LoadedSplits, smallest: int) -> LoadedSplits:
    """Leave out empty captions, and images that are unreadable or smaller than `smallest` px.

    Raises:
        UserError: nothing is left to train on.
    """
    problems = loaded.problems
    train = _usable(loaded.source, loaded.train, smallest, problems)
    validation = _usable(loaded.source, loaded.validation, smallest, problems)
    if loaded.train and not train:
        raise UserError(f"{loaded.source.path}: no image can be used for training: {problems.summary()}")
    return LoadedSplits(loaded.source, train, validation, problems, loaded.total, loaded.shards)


def smallest_side(resolution: int, min_size: int | None = None) -> int:
    """Shortest side in px that an image must have: `min_size`, or half the training resolution."""
    return max(1, resolution // 2) if min_size is None else min_size


def skip_reason(row: Row, image: Callable[[], bytes | Path], smallest: int) -> str | None:
    """Why training skips an image, from its caption and header; None if it is used.

    Args:
        row: of the image.
        image: returns the encoded image.
        smallest: images with a shorter side are skipped, px.
    """
    if not row.captions:
        return "with an empty caption"
    try:
        small = min(read_size(image())) < smallest
    except FileNotFoundError:
        return "missing"
    except UNREADABLE:
        return "unreadable"
    return f"smaller than {smallest} px" if small else None


def _usable(source: Source, rows: list[Row], smallest: int, problems: SkippedImages) -> list[Row]:
    def in_turn(part: list[Row]) -> list[str | None]:
        return [skip_reason(row, partial(source.image, row), smallest) for row in part]

    parts = [rows[i : i + _PART] for i in range(0, len(rows), _PART)]
    good = []
    with quiet_pillow(), ThreadPoolExecutor(8) as pool:  # reading from network disks is slow, but parallel
        answers: Iterable[list[str | None]] = pool.map(in_turn, parts)
        answers = with_progress(answers, "checking images", len(rows), size=len)
        for row, found in zip(rows, chain.from_iterable(answers), strict=True):
            if found is None:
                good.append(row)
            else:
                problems.add(found, row.name)
    return good


def by_group(rows: list[Row]) -> list[list[int]]:
    """Indices of the rows of each group, groups in order of their first row; a row without one is a group."""
    groups: dict[tuple[str, int], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((row.group, -1) if row.group else ("", place), []).append(place)
    return list(groups.values())


def evenly_spread(items: Sequence[Item], number: int) -> list[Item]:
    """So many of them, from the first to the last; all if there are fewer."""
    places = np.linspace(0, len(items) - 1, num=min(number, len(items)), dtype=int)
    return [items[i] for i in places]


class _InMemory(Source):
    """The validation images of a stream."""

    def __init__(self, path: str, rows: list[Row]) -> None:
        self.path = path
        self.rows = rows

    def load(self, problems: SkippedImages) -> dict[str, list[Row]]:
        return {"validation": self.rows}

    def image(self, row: Row) -> bytes | Path:
        assert isinstance(row.place, bytes)
        return row.place


def read_stream(source: StreamSource, val_split: str, val_fraction: float, val_samples: int) -> LoadedSplits:
    """Divide the shards, and read the validation images into memory."""
    splits = source.shards()
    train = splits.get("train", [])
    if not train:
        raise UserError(f"{source.path}: no shards to train on")
    if val_split in splits:
        validation = splits[val_split]
    elif val_split != "validation":
        raise UserError(f"{source.path} has no shards of the split {val_split}")
    elif val_fraction == 0:
        validation = []
    elif len(train) < 2:
        raise UserError(
            f"{source.path} is a single shard: write at least 2, so that one can be held out for validation, "
            "or give data.val_fraction 0"
        )
    else:
        count = max(1, math.floor(val_fraction * len(train)))
        train, validation = train[:-count], train[-count:]
    problems = SkippedImages()
    read = (pair for shard in validation for pair in source.read(shard, problems))
    rows = [Row(row.name, row.captions, data) for row, data in islice(read, val_samples)]
    if validation and not rows:
        raise UserError(f"{source.path}: no images in {', '.join(validation[:3])}, kept for validation")
    return LoadedSplits(_InMemory(source.path, rows), [], rows, problems, len(rows) + problems.total(), train)
