"""Training images, each with one caption, for what is computed from them outside the training steps."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from imagen_pl.data.batch_samplers import BatchPlan, Integers
from imagen_pl.data.dataset import RowImages, StreamImages
from imagen_pl.data.fingerprint import add_images, add_stream
from imagen_pl.data.sample_processing import SampleProcessing
from imagen_pl.data.sources.base import Row, Source
from imagen_pl.data.splits import by_group, evenly_spread
from imagen_pl.types import CaptionedBatch

if TYPE_CHECKING:
    from hashlib import _Hash

_BATCH = 64


class ImageCaptionPairs(ABC):
    """Training images, each with one caption, always the same ones in the same order.

    Kernel-ridge modules are fitted to them, and validation metrics compare samples with them.

    Args:
        processing: how images are decoded.
        resolution: largest height of the images, px.
        smallest: images with a shorter side are skipped, px.
    """

    def __init__(self, processing: SampleProcessing, resolution: int, smallest: int) -> None:
        self.processing, self.resolution, self.smallest = processing, resolution, smallest

    def batches(self, number: int, largest: int, one_a_group: bool = True) -> Iterator[CaptionedBatch]:
        """The pairs in batches.

        Args:
            number: at most this many: rows spread over the whole set, with their first caption; of a stream,
                the images of the first shards.
            largest: side of the images, px, unless the final resolution is smaller.
            one_a_group: take only the first image of each group of near-duplicates.

        Raises:
            UserError: no image can be decoded.
        """
        return self._batches(number, min(self.resolution, largest), one_a_group)

    @abstractmethod
    def count(self, number: int) -> int:
        """How many images `batches` gives; of a stream, at most."""

    def fingerprint(self, number: int, largest: int) -> str:
        """Changes with the images and captions that `batches` gives.

        Images in separate files count by size and time of change, and a stream by its shards and its first 16
        images, so that no more than an index is read of large sets.
        """
        settings = (min(self.resolution, largest), self.smallest, *self.processing.settings())
        digest = hashlib.sha256(repr(settings).encode())
        self._add_pairs(digest, number)
        return digest.hexdigest()[:32]

    @abstractmethod
    def _batches(self, number: int, resolution: int, one_a_group: bool) -> Iterator[CaptionedBatch]: ...

    @abstractmethod
    def _add_pairs(self, digest: _Hash, number: int) -> None:
        """Add what the pairs are to the digest."""


class RowPairs(ImageCaptionPairs):
    """Pairs from rows that can be read in any order.

    Args:
        source: where the images are.
        rows: the training rows.
        processing: how images are decoded.
        resolution: largest side of the images, px.
        smallest: images with a shorter side are skipped, px.
        open_images: opens rows of a source, to be read at a resolution.
    """

    def __init__(
        self,
        source: Source,
        rows: list[Row],
        processing: SampleProcessing,
        resolution: int,
        smallest: int,
        open_images: Callable[[Source, list[Row], int], RowImages],
    ) -> None:
        super().__init__(processing, resolution, smallest)
        self.source, self.rows, self.open_images = source, rows, open_images

    def count(self, number: int) -> int:
        return len(self._chosen(number))

    def _batches(self, number: int, resolution: int, one_a_group: bool) -> Iterator[CaptionedBatch]:
        chosen = self._chosen(number, one_a_group)
        rows = [replace(row, captions=row.captions[:1]) for row in self.rows]
        images = self.open_images(self.source, rows, resolution)
        for part in np.split(chosen, range(_BATCH, len(chosen), _BATCH)):
            yield images[BatchPlan(part, part, resolution)]

    def _add_pairs(self, digest: _Hash, number: int) -> None:
        chosen = self._chosen(number).tolist()
        digest.update(repr([(row.name, row.captions[0]) for row in self.rows]).encode())
        digest.update(repr(chosen).encode())
        add_images(digest, self.source, [self.rows[i] for i in chosen])

    def _chosen(self, number: int, one_a_group: bool = True) -> Integers:
        """Indices of at most so many rows."""
        every = [group[0] for group in by_group(self.rows)] if one_a_group else list(range(len(self.rows)))
        return np.array(evenly_spread(every, number), dtype=np.int64)


class StreamPairs(ImageCaptionPairs):
    """Pairs from the first shards of a stream.

    Args:
        images: the stream.
        resolution: largest side of the images, px.
    """

    def __init__(self, images: StreamImages, resolution: int) -> None:
        super().__init__(images.processing, resolution, images.smallest)
        self.images = images

    def count(self, number: int) -> int:
        return number

    def _batches(self, number: int, resolution: int, one_a_group: bool) -> Iterator[CaptionedBatch]:
        return self.images.once(number, _BATCH, resolution)

    def _add_pairs(self, digest: _Hash, number: int) -> None:
        digest.update(f"{number} {self.processing.seed}".encode())
        add_stream(digest, self.images.source, self.images.shards)
