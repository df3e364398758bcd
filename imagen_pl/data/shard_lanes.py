"""Reads shards in a random order that can be resumed from any position."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from imagen_pl.data.batch_samplers import Integers
from imagen_pl.data.sources.base import Row
from imagen_pl.types import LanePosition

RowBytes = tuple[Row, bytes]


class _Place(NamedTuple):
    """A row of a lane: the pass over the shards, the shard's index in the pass, its index in the shard."""

    cycle: int
    shard: int
    row: int


class ShardLane(Iterator[RowBytes]):
    """An endless stream of rows: its shards in a new random order in each pass, shuffled in blocks.

    A block is the next `block_size` usable rows of a pass, over several shards, or the rest of the pass; its
    rows are returned in random order. So each usable row occurs once per pass. Every random order is a
    function of the seeds and of the number of the pass or block. To resume from a position, only its block is
    read again.

    While rows of a block are returned, the next block is read, one row at a time. So memory holds about
    `block_size` encoded images.

    Args:
        shard_order: maps the number of a pass to its shards, in the order of reading.
        read: yields the rows of a shard in order; None for a row that cannot be used.
        block_size: rows that are shuffled together.
        seeds: of the order within blocks.
        start: the position to start from.
        on_empty: called with the shards of a pass without a usable row; must raise an error.
    """

    def __init__(
        self,
        shard_order: Callable[[int], Integers],
        read: Callable[[int], Iterator[RowBytes | None]],
        block_size: int,
        seeds: tuple[int, ...],
        start: LanePosition,
        on_empty: Callable[[Integers], None],
    ) -> None:
        self.shard_order, self.read, self.on_empty = shard_order, read, on_empty
        self.block_size = max(1, block_size)
        self.seeds = seeds
        self._rows = self._from(start)
        self._next: list[tuple[_Place, RowBytes]] = []  # the part of the next block that was read
        self._of_later_pass: tuple[_Place, RowBytes] | None = None  # read ahead; belongs to a later pass
        self._begin_block(start.block)
        self._taken = start.taken
        for i in self._order[: self._taken]:
            self._block[i] = None  # returned before the checkpoint

    @property
    def position(self) -> LanePosition:
        """The position of the next row."""
        if self._taken == len(self._block) and self._next:
            return LanePosition(self._number + 1, *self._next[0][0], taken=0)
        return LanePosition(self._number, *self._begin, taken=self._taken)

    def __next__(self) -> RowBytes:
        if self._taken >= len(self._block):
            self._begin_block(self._number + 1)
        self._read_ahead(self._taken + 1)
        i = self._order[self._taken]
        row = self._block[i]
        assert row is not None
        self._block[i] = None
        self._taken += 1
        return row

    def _begin_block(self, number: int) -> None:
        self._read_ahead(self.block_size)
        self._number, self._taken = number, 0
        self._begin = self._next[0][0]
        self._block: list[RowBytes | None] = [row for _, row in self._next]
        self._order = np.random.default_rng([*self.seeds, number]).permutation(len(self._block)).tolist()
        self._next = []

    def _read_ahead(self, count: int) -> None:
        """Read up to `count` rows of the next block, or to the end of its pass."""
        while len(self._next) < min(count, self.block_size):
            place, row = self._of_later_pass or next(self._rows)
            self._of_later_pass = None
            if self._next and place.cycle != self._next[0][0].cycle:
                self._of_later_pass = place, row
                return
            self._next.append((place, row))

    def _from(self, start: LanePosition) -> Iterator[tuple[_Place, RowBytes]]:
        """Endless: the usable rows from a position on."""
        cycle, first_shard, first_row = start.cycle, start.shard, start.row
        while True:
            is_whole, found = (first_shard, first_row) == (0, 0), False
            shards = self.shard_order(cycle)
            for place in range(first_shard, len(shards)):
                for number, row in enumerate(self.read(int(shards[place]))):
                    if number >= first_row and row is not None:
                        found = True
                        yield _Place(cycle, place, number), row
                first_row = 0
            if is_whole and not found:
                self.on_empty(shards)
            cycle, first_shard = cycle + 1, 0
