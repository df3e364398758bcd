"""The interface of a data source: captioned images by split, read by row or as a stream."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.declaration import SourceDeclaration, Vocabulary
from imagen_pl.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
CAPTION_COLUMNS = ("caption", "captions", "text", "prompt", "description", "sentences")
# Names of splits in data sets, and ours.
SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One image and its captions.

    Args:
        name: names the image in messages, and determines whether it is held out: a path relative to the
            source's own, or the number of a row.
        captions: one or more; of several, training samples one each time.
        place: the source's own reference to the image.
        group: shared by near-duplicate rows, for example the skin tones of an emoji; "" for no group.
    """

    name: str
    captions: tuple[str, ...]
    place: Any
    group: str = ""


class Source(ABC):
    """Captioned images that can be read in any order.

    A new kind of source is one file with one subclass. Its constructor takes `path` first and only stores
    its arguments; `load` raises if they are wrong. It must pickle, for the loader's workers.
    """

    path: str

    def declaration(self) -> SourceDeclaration:
        """Licence, styles, and whether captions may be published; reads no data. By default, they may not."""
        return SourceDeclaration()

    def vocabulary(self) -> Vocabulary | None:
        """What the training captions name, for the web demo; None if unknown. May read the data."""
        return None

    def summary(self) -> list[str]:
        """Lines for `imagen-pl data inspect` about what only this source knows; none by default."""
        return []

    @abstractmethod
    def load(self, problems: SkippedImages) -> dict[str, list[Row]]:
        """Rows by split: "train", and "validation" and others if the source has them.

        Single rows that cannot be used are left out and counted in `problems`; rows with empty
        captions may stay in: the caller counts them.

        Raises:
            UserError: the source does not exist or is empty.
        """

    @abstractmethod
    def image(self, row: Row) -> bytes | Path:
        """The encoded image: its bytes, or its file. May raise OSError."""


class StreamSource(ABC):
    """Captioned images in a stream of shards, for sets that are too large for random access.

    As with `Source`, the constructor only stores its arguments, and the object must pickle.
    """

    path: str

    def declaration(self) -> SourceDeclaration:
        """As `Source.declaration`."""
        return SourceDeclaration()

    def vocabulary(self) -> Vocabulary | None:
        """As `Source.vocabulary`."""
        return None

    @abstractmethod
    def shards(self) -> dict[str, list[str]]:
        """Shards by split, in a fixed order. Raises UserError if there are none."""

    @abstractmethod
    def read(self, shard: str, problems: SkippedImages) -> Iterator[tuple[Row, bytes]]:
        """The rows of one shard in their order, each with its encoded image."""


def as_captions(value: object) -> tuple[str, ...]:
    """The captions in a cell, one string or several, with white space normalised."""
    if value is None:
        return ()
    words = (
        [value] if isinstance(value, str) else list(value) if isinstance(value, Sequence) else [str(value)]
    )
    return tuple(text for word in words if (text := " ".join(str(word or "").split())))


def caption_column(columns: Sequence[str], wanted: str | None, where: str) -> str:
    """The column of captions: `wanted`, or the first with a usual name."""
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise UserError(f"{where} has no column {wanted}: it has {', '.join(columns)}")
    for column in CAPTION_COLUMNS:
        if column in columns:
            return column
    raise UserError(
        f"{where} has none of the columns {', '.join(CAPTION_COLUMNS)}; it has {', '.join(columns)}: "
        "say which holds the captions with caption_column"
    )


def existing(path: str) -> Path:
    """The path. Raises UserError if it does not exist."""
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"{path} does not exist: check the path")
    return found


def stable_hash(text: str) -> int:
    """A number from 0 to 2^64 - 1 that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
