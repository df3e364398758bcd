"""Fingerprints of data: what a model was trained on, and whether cached results are still valid."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row, Source, StreamSource
from imagen_pl.data.splits import LoadedSplits
from imagen_pl.data.transforms import UNREADABLE

if TYPE_CHECKING:
    from hashlib import _Hash

_OPENED = 16


def add_rows(digest: _Hash, source: Source, rows: list[Row]) -> None:
    """Add the rows' names and captions, and the bytes of 16 images among them."""
    for row in rows:
        digest.update(f"{row.name}\0{row.captions}\0".encode())
    for i in np.linspace(0, len(rows) - 1, num=min(_OPENED, len(rows)), dtype=int):
        try:
            image = source.image(rows[i])
            digest.update(image if isinstance(image, bytes) else image.read_bytes())
        except UNREADABLE:
            digest.update(b"unreadable")


def add_images(digest: _Hash, source: Source, rows: list[Row]) -> None:
    """Add every image: its bytes, or size and time of change where it is a file of its own."""
    for row in rows:
        try:
            image = source.image(row)
            digest.update(image if isinstance(image, bytes) else _file_version(image))
        except UNREADABLE:
            digest.update(b"unreadable")


def add_stream(digest: _Hash, source: StreamSource, shards: list[str]) -> None:
    """Add the shards' names, size and time of change of those that are local files, and the first 16 rows."""
    for shard in shards:
        digest.update(repr(PurePath(shard).name).encode())
        if Path(shard).is_file():
            digest.update(_file_version(Path(shard)))
    rows = (row for shard in shards for row in source.read(shard, SkippedImages()))
    for row, image in islice(rows, _OPENED):
        digest.update(repr((row.name, row.captions)).encode() + image)


def _file_version(path: Path) -> bytes:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}\0".encode()


def data_version(named: Source | StreamSource, checked: LoadedSplits) -> dict[str, Any]:
    """What is trained on and scored.

    Args:
        named: the source, as the user gave it.
        checked: its rows that can be used.

    Returns:
        name of the file, folder or data set; kind of source; counts; digest: of the rows' names and captions
        and 16 images a split, the same wherever the data lie. Of a stream's training shards the names count.
    """
    digest = hashlib.sha256()
    for rows in (checked.train, checked.validation):
        digest.update(f"{len(rows)}\0".encode())
        add_rows(digest, checked.source, rows)
    shards = [PurePath(shard).name for shard in checked.shards]
    digest.update("\0".join(shards).encode())
    version: dict[str, Any] = {
        "name": PurePath(named.path).name,
        "source": type(named).__name__,
        "digest": digest.hexdigest()[:16],
        "train_images": len(checked.train),
        "validation_images": len(checked.validation),
    }
    if shards:
        version |= {"train_images": None, "train_shards": len(shards)}  # nobody has counted them
    return version
