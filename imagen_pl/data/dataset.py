"""Builds batches from plans, with a cache of small images.

Axes: b batch, h w pixels, n rows.
"""

from __future__ import annotations

import logging
import math
import mmap
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from imagen_pl.data.batch_samplers import BatchPlan, Integers, StreamTurn
from imagen_pl.data.sample_processing import LatentLookup, SampleProcessing, TextLookup
from imagen_pl.data.shard_lanes import ShardLane
from imagen_pl.data.skipped_images import NewlySkipped
from imagen_pl.data.sources.base import Row, Source, StreamSource
from imagen_pl.data.splits import skip_reason
from imagen_pl.data.transforms import UNREADABLE, quiet_pillow
from imagen_pl.errors import UserError
from imagen_pl.types import CaptionedBatch, LanePosition, StreamMark

log = logging.getLogger(__name__)


class RowImages(Dataset[CaptionedBatch]):
    """Batches from rows that can be read in any order: `dataset[plan]`.

    An image that cannot be decoded is replaced by the next row that can, the same in every process and
    every resumed run; a warning names it once, and `broken` marks it.

    Args:
        source: where the images are.
        rows: the rows of this split.
        processing: how samples are decoded, captioned and flipped.
        cache_bytes: memory limit of the cache of decoded images; it is used if all rows of a resolution fit.
        text_lookup: features of captions, from a cache.
        latent_lookup: latents of rows, from a cache.
    """

    def __init__(
        self,
        source: Source,
        rows: list[Row],
        processing: SampleProcessing,
        cache_bytes: int = 0,
        text_lookup: TextLookup | None = None,
        latent_lookup: LatentLookup | None = None,
    ) -> None:
        self.source = source
        self.rows = rows
        self.processing = processing
        self.cache_bytes = cache_bytes
        self.text_lookup = text_lookup
        self.latent_lookup = latent_lookup
        # Shared with the workers, so that each broken image is reported once.
        self.broken = torch.zeros(len(rows), dtype=torch.bool).share_memory_()
        self._cache: OrderedDict[tuple[int, int, int], _Cache] = OrderedDict()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, plan: BatchPlan) -> CaptionedBatch:
        assert plan.rows is not None
        rows = torch.from_numpy(plan.rows)
        shape = self.processing.shape(plan.resolution)
        cache = self._cache_for(shape)
        if cache is None:
            images = torch.empty(len(rows), *shape, dtype=torch.uint8)
            with quiet_pillow():
                for i, row in enumerate(rows.tolist()):
                    images[i] = self._image(row, plan.resolution)
        else:
            self._fill(cache, rows[~cache.filled[rows]], plan.resolution)
            images = cache.images[rows]
        images = self.processing.crop(images, plan.numbers, plan.resolution)
        choices = [self.rows[row].captions for row in rows.tolist()]
        deciding = plan.numbers
        if plan.shared is not None:
            choices, deciding = [(caption,) for caption in plan.shared.captions], plan.shared.numbers
        if self.broken.any():
            for i, row in enumerate(rows.tolist()):
                if self.broken[row]:
                    choices[i] = self.rows[self._stand_in(row)].captions
        batch = self.processing.collate(images, choices, plan.numbers, self.text_lookup, deciding)
        if self.latent_lookup is not None:
            batch.latents = self.latent_lookup(plan.rows, plan.resolution)
        return batch

    def share_among_workers(self, resolutions: Iterable[int]) -> None:
        """Allocate the caches in memory that all workers share, so that no worker keeps its own copy.

        Call it before the workers are forked; spawned workers each keep their own. Pages take memory only
        once an image is written to them.

        Args:
            resolutions: of the images, px.
        """
        for shape in map(self.processing.shape, resolutions):
            if len(self.rows) * math.prod(shape) <= self.cache_bytes and shape not in self._cache:
                images = shared_zeros(len(self.rows) * math.prod(shape)).view(len(self.rows), *shape)
                self._cache[shape] = _Cache(images, shared_zeros(len(self.rows)).view(torch.bool))

    def share(self, other: RowImages) -> None:
        """Use the list of broken images and the decoded images of another data set with the same rows."""
        self.broken, self._cache = other.broken, other._cache

    def __getstate__(self) -> dict[str, object]:
        # The main process's cache is not sent to the workers.
        return {**self.__dict__, "_cache": OrderedDict()}

    def _fill(self, cache: _Cache, rows: Tensor, resolution: int) -> None:
        if len(rows):
            with quiet_pillow():
                for row in rows.tolist():
                    if not cache.filled[row]:
                        cache.images[row] = self._image(row, resolution)
                        cache.filled[row] = True

    def _image(self, row: int, resolution: int) -> UInt8[Tensor, "c h w"]:
        while True:
            row = self._stand_in(row)  # raises when none is left
            try:
                return self.processing.decode(self.source.image(self.rows[row]), resolution)
            except UNREADABLE as error:
                self.broken[row] = True
                log.warning(
                    "%s cannot be decoded and is skipped (%s)", self.rows[row].name, _first_line(error)
                )

    def _stand_in(self, row: int) -> int:
        """The row itself, or the next one that is not broken."""
        if not self.broken[row]:
            return row
        for step in range(1, len(self.rows)):
            if not self.broken[(row + step) % len(self.rows)]:
                return (row + step) % len(self.rows)
        raise UserError(f"{self.source.path}: none of its {len(self.rows)} images can be decoded")

    def _cache_for(self, shape: tuple[int, int, int]) -> _Cache | None:
        if len(self.rows) * math.prod(shape) > self.cache_bytes:
            return None
        if shape not in self._cache:
            if self._cache:
                self._cache.clear()  # a growth stage that has ended does not return
            self._cache[shape] = _Cache(
                torch.empty(len(self.rows), *shape, dtype=torch.uint8),
                torch.zeros(len(self.rows), dtype=torch.bool),
            )
        return self._cache[shape]


def shared_zeros(count: int) -> UInt8[Tensor, " n"]:
    """Zeros in memory that forked processes share; not in /dev/shm, which is small in containers."""
    return torch.frombuffer(mmap.mmap(-1, max(count, 1)), dtype=torch.uint8)[:count]


@dataclass
class _Cache:
    images: UInt8[Tensor, "n c h w"]
    filled: Tensor


class StreamImages(Dataset[CaptionedBatch]):
    """Batches from a stream of shards: each worker of each process reads its own share of them.

    A process has several lanes (imagen_pl.data.shard_lanes). A plan gives the lane that its batch is read
    from and, if needed, the position in it. The order is a function of the seed and of the position; the
    batch contains the new position. The shards of each pass are divided among the lanes of all processes.

    Args:
        source: where the shards are.
        shards: those of this split.
        processing: how samples are decoded, captioned and flipped.
        buffer: images that are shuffled together in each lane.
        rank: number of this process.
        world_size: number of processes.
        text_lookup: features of captions, from a cache.
        smallest: images with a shorter side are skipped, px.
        lanes: number of lanes of each process.
    """

    def __init__(
        self,
        source: StreamSource,
        shards: list[str],
        processing: SampleProcessing,
        buffer: int,
        rank: int = 0,
        world_size: int = 1,
        text_lookup: TextLookup | None = None,
        smallest: int = 1,
        lanes: int = 1,
    ) -> None:
        self.source = source
        self.shards = shards
        self.processing = processing
        self.buffer = buffer
        self.rank = rank
        self.world_size = world_size
        self.text_lookup = text_lookup
        self.smallest = smallest
        self.lanes = lanes
        self.problems = NewlySkipped(on_first=self._warn)
        self._open: OrderedDict[int, ShardLane] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __getitem__(self, plan: BatchPlan) -> CaptionedBatch:
        turn = plan.stream
        lane = self._lane(turn)
        with quiet_pillow():
            found = list(islice(self._decoded(lane, plan.resolution), len(plan.numbers)))
        batch = self._batch(found, plan.numbers, plan.resolution)
        skipped = self.problems.take_new()
        batch.stream = StreamMark(turn.lane, lane.position, turn.clock, turn.ends_epoch, skipped)
        return batch

    def once(self, number: int, size: int, resolution: int) -> Iterator[CaptionedBatch]:
        """Batches of `size` different images, shard by shard: `number` images, or all if there are fewer."""
        shards = (pair for shard in self.shards for pair in self.source.read(shard, self.problems))
        images = islice(self._decoded((pair for pair in shards if self._usable(*pair)), resolution), number)
        while True:
            with quiet_pillow():
                found = list(islice(images, size))
            if not found:
                return
            yield self._batch(found, np.arange(len(found), dtype=np.int64), resolution)

    def _batch(
        self,
        found: list[tuple[UInt8[Tensor, "c h w"], tuple[str, ...]]],
        numbers: Integers,
        resolution: int,
    ) -> CaptionedBatch:
        decoded, choices = zip(*found, strict=True)
        images = self.processing.crop(torch.stack(decoded), numbers, resolution)
        return self.processing.collate(images, list(choices), numbers, self.text_lookup)

    def _decoded(
        self, rows: Iterator[tuple[Row, bytes]], resolution: int
    ) -> Iterator[tuple[UInt8[Tensor, "c h w"], tuple[str, ...]]]:
        for row, data in rows:
            try:
                image = self.processing.decode(data, resolution)
            except UNREADABLE:
                self.problems.add("unreadable", row.name)
            else:
                yield image, row.captions

    def _lane(self, turn: StreamTurn) -> ShardLane:
        """The lane of a batch; reopened if its position differs, since another worker has read from it."""
        lane = self._open.pop(turn.lane, None)
        if lane is None or turn.at not in (None, lane.position):
            place = self.rank * self.lanes + turn.lane
            lane = ShardLane(
                partial(self._shard_order, turn.origin, place),
                self._read,
                self.buffer,
                (self.processing.seed, turn.origin, place),
                turn.at or LanePosition(),
                self._nothing_usable,
            )
        self._open[turn.lane] = lane
        worker = get_worker_info()
        if len(self._open) > -(-self.lanes // (worker.num_workers if worker else 1)):
            self._open.popitem(last=False)  # another worker reads it now
        return lane

    def _shard_order(self, origin: int, place: int, cycle: int) -> Integers:
        # Every lane computes the same order and takes its own part of it, so no shard is read twice.
        order = np.random.default_rng([self.processing.seed, origin, cycle]).permutation(len(self.shards))
        return order[place :: self.world_size * self.lanes]

    def _read(self, shard: int) -> Iterator[tuple[Row, bytes] | None]:
        for row, data in self.source.read(self.shards[shard], self.problems):
            yield (row, data) if self._usable(row, data) else None

    def _nothing_usable(self, shards: Integers) -> None:
        names = ", ".join(self.shards[shard] for shard in shards[:3])
        raise UserError(
            f"{self.source.path}: no usable image in {names}: {self.problems.summary() or 'they are empty'}"
        )

    def _usable(self, row: Row, data: bytes) -> bool:
        reason = skip_reason(row, lambda: data, self.smallest)
        if reason is not None:
            self.problems.add(reason, row.name)
        return reason is None

    def _warn(self, reason: str, name: str) -> None:
        log.warning("%s: skipping images %s, as %s", self.source.path, reason, name)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
