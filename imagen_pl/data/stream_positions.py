"""The read positions of a run's streams, so that a resumed run continues with the same images.

Axes: p processes, l lanes per process, n fields of a LanePosition.
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

# Positions to keep: Lightning prefetches a batch, and a checkpoint may be from before a failed batch.
_KEPT = 4


@dataclass
class _Snapshot:
    """The positions of all lanes between two batches.

    next_lane: the lane of the next batch.
    positions: of the lanes of every process; on the training device, since reading them would synchronise.
    """

    next_lane: int
    positions: Int64[Tensor, "p l n"]


class StreamPositions:
    """The positions of all lanes of all processes, by images seen.

    Every process has as many lanes as it had workers at the start of the run. Batch i of an epoch is read
    from lane i mod `lanes`, whichever worker reads it. So a position depends neither on the worker nor on
    what workers have prefetched.

    Args:
        order: identifies the shards and their order (`order_of`).
        lanes: number of lanes of each process.
        rank: number of this process.
        world_size: number of processes.
        gather: gathers the position of every process, by rank.
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
        self._by_clock: dict[int, _Snapshot] = {}

    # ------------------------------------------------------------------ batches

    def turns(self, start: int) -> Iterator[StreamTurn]:
        """Endless: the lane of each batch of an epoch that begins at this clock.

        If no positions are known at this clock, the streams restart in a new order.
        """
        if start not in self._by_clock:
            self.origin = start
            self._by_clock = {start: self._beginning()}
        self._now = self._by_clock[start]
        lane, begun = self._now.next_lane, set[int]()
        own = self._now.positions[self.rank].tolist()
        while True:
            at = None
            if lane not in begun:  # later batches of the lane continue in its worker
                at = LanePosition(*own[lane])
            begun.add(lane)
            yield StreamTurn(lane, at, self.origin)
            lane = (lane + 1) % self.lanes

    def record(self, mark: StreamMark) -> None:
        """Record the positions after a batch."""
        everywhere = self.gather(torch.tensor(mark.position))
        positions = self._now.positions.to(everywhere.device, copy=True)
        positions[:, mark.lane] = everywhere  # all processes read this batch from the same lane
        # An epoch begins with lane 0, since the data loader begins it with worker 0.
        self._now = _Snapshot(0 if mark.ends_epoch else (mark.lane + 1) % self.lanes, positions)
        self._by_clock.pop(mark.clock, None)
        self._by_clock[mark.clock] = self._now
        while len(self._by_clock) > _KEPT:
            del self._by_clock[next(iter(self._by_clock))]

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self, images_seen: int) -> dict[str, Any]:
        """The positions at a clock, for a checkpoint; empty if they are not known."""
        snapshot = self._by_clock.get(images_seen)
        if snapshot is None:
            return {}
        return {
            "order": self.order,
            "images_seen": images_seen,
            "origin": self.origin,
            "lanes": self.lanes,
            "world_size": self.world_size,
            "next_lane": snapshot.next_lane,
            "positions": snapshot.positions.tolist(),
        }

    def newest(self) -> dict[str, Any]:
        """The state at the newest clock; empty before the first batch."""
        return self.state_dict(max(self._by_clock, default=-1))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the positions of a checkpoint, which must match this run (`why_not`)."""
        self.origin, self.lanes = state["origin"], state["lanes"]
        positions = torch.tensor(state["positions"])
        self._by_clock = {state["images_seen"]: _Snapshot(state["next_lane"], positions)}

    def _beginning(self) -> _Snapshot:
        return _Snapshot(0, torch.tensor(LanePosition()).repeat(self.world_size, self.lanes, 1))

    def why_not(self, state: dict[str, Any]) -> str | None:
        """Why a checkpoint's positions do not match this run; None if they do."""
        if state["world_size"] != self.world_size:
            return f"it had {state['world_size']} processes and this run has {self.world_size}"
        return None if state["order"] == self.order else "the shards or the seed differ"


class RunStreams:
    """The stream positions of a run, and its report of skipped images; a data module keeps one.

    It has no reference to a data loader: a loader's workers stop only when it is freed.

    Args:
        source: name of the source in messages.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.positions: StreamPositions | None = None
        self.report = SkippedReport(source)
        self._state: dict[str, Any] | None = None

    def begin(self, positions: StreamPositions) -> StreamPositions:
        """The positions of a new data loader: those of the loaded checkpoint or of the loader before it.

        A checkpoint is used once. Positions that do not match the shards or the processes are dropped, with a
        warning.
        """
        state, self._state = self._state, None
        if state is None and self.positions is not None:
            state = self.positions.newest()
        self.positions = positions
        if state:
            why_not = positions.why_not(state)
            if why_not is None:
                positions.load_state_dict(state)
            elif positions.rank == 0:
                log.warning(
                    "%s: the images are in a new order since the checkpoint: %s", self.source, why_not
                )
        return positions

    def state_dict(self, images_seen: int) -> dict[str, Any]:
        """As `StreamPositions.state_dict`; empty for sources that are not streams."""
        return {} if self.positions is None else self.positions.state_dict(images_seen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the positions of a checkpoint for `begin`."""
        self._state = state


def order_of(shards: Sequence[str], *settings: int) -> str:
    """Hash of the shards' names and the settings; independent of the folder."""
    names = [shard.rstrip("/").rsplit("/", 1)[-1] for shard in shards]
    return hashlib.sha256(json.dumps([names, settings]).encode()).hexdigest()[:16]


def workers_for(lanes: int, most: int) -> int:
    """The largest number of workers, at most `most`, among which the lanes divide evenly; 0 for none."""
    return max((n for n in range(1, most + 1) if lanes % n == 0), default=0)


class SkippedReport:
    """Logs in one line what all workers of this process have skipped.

    Args:
        source: name of the source in the message.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.skipped = SkippedImages(count_once=True)
        self._reported = 0

    def log(self) -> None:
        """Log what was skipped so far, if it has grown since the last call."""
        if self.skipped.total() > self._reported:
            self._reported = self.skipped.total()
            log.warning("%s: skipped so far: %s", self.source, self.skipped.summary())


class StreamLoader(DataLoader[CaptionedBatch]):
    """A data loader that records stream positions, and logs what was skipped after each epoch.

    Attributes:
        streams: where the positions are recorded.
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
