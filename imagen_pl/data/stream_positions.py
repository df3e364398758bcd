"""Where the streams of a run stand, so that a resumed run goes on with the same images.

Axes: p processes, l lanes of each, n numbers of a LanePosition.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader

from imagen_pl.data.batch_samplers import StreamTurn
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.types import CaptionedBatch, LanePosition, StreamMark

log = logging.getLogger(__name__)

# Lightning fetches a batch ahead, and a checkpoint may be from before the batch that failed.
_KEPT = 4


@dataclass
class _Standing:
    """Where everything stands between two batches.

    next_lane: the lane of the next batch.
    positions: of the lanes of every process, on the device of the training: reading them would wait for it.
    """

    next_lane: int
    positions: Int64[Tensor, "p l n"]


class StreamPositions:
    """The positions of all lanes of all processes, by the clock.

    Every process has as many lanes as it has workers at the start of the run. Batch i of an epoch is read
    from lane i mod `lanes`, whichever worker reads it. So a position depends neither on the worker nor on
    what workers have prefetched.

    Args:
        order: identifies the shards and their order (`order_of`).
        lanes: of each process.
        rank: number of this process.
        world_size: number of processes.
        gather: from the position of this process to those of all, by rank.
    """

    def __init__(
        self,
        order: str,
        lanes: int,
        rank: int = 0,
        world_size: int = 1,
        gather: Callable[[Int64[Tensor, " n"]], Int64[Tensor, "p n"]] = lambda own: own[None],
    ) -> None:
        self.order, self.lanes, self.rank, self.world_size, self.gather = (
            order, lanes, rank, world_size, gather,
        )  # fmt: skip
        self.origin = 0
        self._now = self._beginning()
        self._by_clock: dict[int, _Standing] = {}

    # ------------------------------------------------------------------ batches

    def turns(self, start: int) -> Iterator[StreamTurn]:
        """Endless: the lane of each batch of an epoch, from the clock at its start.

        Where no position is known at this clock, the streams begin anew, in an order of their own.
        """
        if start not in self._by_clock:
            self.origin = start
            self._by_clock = {start: self._beginning()}
        self._now = self._by_clock[start]
        lane, begun = self._now.next_lane, set[int]()
        own = self._now.positions[self.rank].tolist()
        while True:
            at = None
            if lane not in begun:  # then its worker goes on
                at = LanePosition(*own[lane])
            begun.add(lane)
            yield StreamTurn(lane, at, self.origin)
            lane = (lane + 1) % self.lanes

    def record(self, mark: StreamMark) -> None:
        """Take note of where the streams stand after a batch."""
        everywhere = self.gather(torch.tensor(mark.position))
        positions = self._now.positions.to(everywhere.device, copy=True)
        positions[:, mark.lane] = everywhere  # every process reads its batch from this lane
        # An epoch begins with lane 0, as the data loader begins it with worker 0.
        self._now = _Standing(0 if mark.ends_epoch else (mark.lane + 1) % self.lanes, positions)
        self._by_clock.pop(mark.clock, None)
        self._by_clock[mark.clock] = self._now
        while len(self._by_clock) > _KEPT:
            del self._by_clock[next(iter(self._by_clock))]

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self, images_seen: int) -> dict[str, Any]:
        """The positions at a clock, for a checkpoint; empty if they are not known."""
        standing = self._by_clock.get(images_seen)
        if standing is None:
            return {}
        return {
            "order": self.order,
            "images_seen": images_seen,
            "origin": self.origin,
            "lanes": self.lanes,
            "world_size": self.world_size,
            "next_lane": standing.next_lane,
            "positions": standing.positions.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the positions of a checkpoint, which must fit (`why_not`)."""
        self.origin, self.lanes = state["origin"], state["lanes"]
        positions = torch.tensor(state["positions"])
        self._by_clock = {state["images_seen"]: _Standing(state["next_lane"], positions)}

    def _beginning(self) -> _Standing:
        return _Standing(0, torch.tensor(LanePosition()).repeat(self.world_size, self.lanes, 1))

    def why_not(self, state: dict[str, Any]) -> str | None:
        """Why a checkpoint's positions do not fit this run; None if they do."""
        if state["world_size"] != self.world_size:
            return f"it had {state['world_size']} processes and this run has {self.world_size}"
        return None if state["order"] == self.order else "the shards or the seed differ"


class RunStreams:
    """The streams of a run: what a data module keeps of them.

    It holds no data loader, which must be freed as soon as it is no longer used: its workers stop then.

    Args:
        source: names the source in messages.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.positions: StreamPositions | None = None
        self.report = SkippedReport(source)
        self._state: dict[str, Any] | None = None

    def begin(self, positions: StreamPositions) -> StreamPositions:
        """Go on from the checkpoint that was loaded, if it fits."""
        self.positions = positions
        if self._state is not None:
            why_not = positions.why_not(self._state)
            if why_not is None:
                positions.load_state_dict(self._state)
            elif positions.rank == 0:
                log.warning(
                    "%s: the order of the images is not that of the checkpoint: %s", self.source, why_not
                )
        return positions

    def state_dict(self, images_seen: int) -> dict[str, Any]:
        """As `StreamPositions.state_dict`; empty of sources that are no streams."""
        return {} if self.positions is None else self.positions.state_dict(images_seen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the positions of a checkpoint for `begin`."""
        self._state = state


def order_of(shards: Sequence[str], *settings: int) -> str:
    """Identifies an order of shards, wherever their folder lies."""
    names = [shard.rstrip("/").rsplit("/", 1)[-1] for shard in shards]
    return hashlib.sha256(json.dumps([names, settings]).encode()).hexdigest()[:16]


def workers_for(lanes: int, most: int) -> int:
    """The largest number of workers, at most `most`, among which the lanes divide evenly; 0 for none."""
    return max((n for n in range(1, most + 1) if lanes % n == 0), default=0)


class SkippedReport:
    """What a stream has skipped, over all workers of this process, reported in one line.

    Args:
        source: names the source.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.skipped = SkippedImages(count_once=True)
        self._reported = 0

    def log(self) -> None:
        """Log what was skipped so far, if that is more than at the last call."""
        if self.skipped.total() > self._reported:
            self._reported = self.skipped.total()
            log.warning("%s: skipped so far: %s", self.source, self.skipped.summary())


class StreamLoader(DataLoader[CaptionedBatch]):
    """A data loader that records the stream's positions, and reports what was skipped after each epoch.

    Attributes:
        streams: where it records them.
    """

    streams: RunStreams

    def __iter__(self) -> Any:
        positions, report = self.streams.positions, self.streams.report
        assert positions is not None
        for batch in super().__iter__():
            assert batch.stream is not None
            positions.record(batch.stream)
            for reason, name in batch.stream.skipped:
                report.skipped.add(reason, name)
            yield batch
        report.log()
