"""The samples of each batch: pure functions of the seed and the number of images trained.

Sample n is row permutation(seed, n // rows)[n % rows]. Batches are planned here, in the main
process, and the plan carries the resolution, so workers that prefetch never use that of an old stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from imagen_pl.errors import UserError
from imagen_pl.schedules import Stage, batches
from imagen_pl.types import LanePosition

Integers = NDArray[np.int64]

FLIP, DROP_CAPTION, WHICH_CAPTION, WHICH_MEMBER, OWN_CAPTIONS, SHARED_ATTRIBUTES = 1, 2, 3, 4, 5, 6
CROP_X, CROP_Y = 7, 8


class SharedCaptions(NamedTuple):
    """The captions of a batch in which several samples share each caption.

    captions: one a sample.
    numbers: the sample number that decides about caption dropout: samples that share a caption share it too.
    """

    captions: list[str]
    numbers: Integers


class StreamTurn(NamedTuple):
    """The lane of a stream that a batch is read from, and its position (imagen_pl.data.stream_positions).

    lane: number of the lane within its process.
    at: position to read from; None to continue after the lane's previous batch.
    origin: images seen when the stream began; it seeds the order of the stream.
    clock: images seen after the batch.
    ends_epoch: whether it is the last batch of its epoch.
    """

    lane: int = 0
    at: LanePosition | None = None
    origin: int = 0
    clock: int = 0
    ends_epoch: bool = False


class BatchPlan(NamedTuple):
    """One process's part of a batch.

    numbers: positions of the samples in the endless stream of training samples, or in the validation split.
    rows: their rows in the source; None for a stream.
    resolution: side of the images, px.
    shared: the captions, where samples share them; None if each sample draws one of its own.
    stream: for a stream, the lane and position that the batch is read from.
    """

    numbers: Integers
    rows: Integers | None
    resolution: int
    shared: SharedCaptions | None = None
    stream: StreamTurn = StreamTurn()


def uniform(seed: int, purpose: int, numbers: Integers) -> NDArray[np.float64]:
    """A number from [0, 1) for each sample: a hash, so that it does not depend on earlier draws.

    SplitMix64's mixing function (Steele et al., OOPSLA 2014) over seed, purpose and number.
    """
    key = _mix(_mix(np.array([seed % 2**64], np.uint64)) + np.uint64(purpose))
    bits = _mix(numbers.astype(np.uint64) ^ key) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Shuffle:
    """The endless stream of rows: each pass over the data is a new permutation.

    Args:
        rows: number of rows.
        seed: of the permutations.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self._passes: dict[int, Integers] = {}

    def __call__(self, numbers: Integers) -> Integers:
        which, place = np.divmod(numbers, self.rows)
        rows = np.empty_like(numbers)
        for one in np.unique(which):
            rows[which == one] = self._pass(int(one))[place[which == one]]
        return rows

    def _pass(self, number: int) -> Integers:
        if number not in self._passes:
            if len(self._passes) > 1:
                self._passes.clear()
            self._passes[number] = np.random.default_rng([self.seed, number]).permutation(self.rows)
        return self._passes[number]


class GroupedShuffle(Shuffle):
    """The endless stream in which each group occurs once a pass, with one of its rows drawn at random.

    Args:
        groups: the rows of each group.
        seed: of the permutations and the draws.
    """

    def __init__(self, groups: Sequence[Sequence[int]], seed: int) -> None:
        super().__init__(len(groups), seed)
        self._sizes = np.array([len(group) for group in groups], dtype=np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._members = np.array([row for group in groups for row in group], dtype=np.int64)

    def __call__(self, numbers: Integers) -> Integers:
        group = super().__call__(numbers)
        draw = uniform(self.seed, WHICH_MEMBER, numbers)
        return self._members[self._starts[group] + (draw * self._sizes[group]).astype(np.int64)]


class CaptionGroups:
    """Batches in which `pictures` samples share each caption, so that a batch shows how its pictures vary.

    In a batch of b samples, sample i has the caption of sample i mod (b / pictures): the groups of a
    discriminator's `minibatch_stddev` are then pictures of one caption. A caption with fewer than `pictures`
    rows has one sample; the other places of its group are samples with other captions.

    In a share of the groups the pictures still have one caption in common, but each is given another of its
    captions: pictures of "bell" have "bell, outline", "bell, filled" and so on. The batch then contains hard
    negatives (batches of similar samples, GRIT-VLP, arXiv:2208.04060, section 3.1). Losses that compare the
    images of one caption skip these groups.

    In another share of the groups the pictures have different subjects, but the same attributes, that is what
    their captions say after the subject: "bell, Tabler Icons, outline", "home, Tabler Icons, outline".

    Args:
        order: from sample numbers to rows.
        captions: the captions of each row.
        pictures: samples that share a caption, 2 or more.
        seed: of the choice of captions and pictures.
        own_captions: the share of groups whose pictures have captions of their own.
        shared_attributes: the share of groups whose pictures have different subjects and the same attributes.
    """

    def __init__(
        self,
        order: Shuffle,
        captions: Sequence[tuple[str, ...]],
        pictures: int,
        seed: int,
        own_captions: float = 0.0,
        shared_attributes: float = 0.0,
    ) -> None:
        self.order, self.captions, self.pictures, self.seed = order, captions, pictures, seed
        self.own_captions, self.shared_attributes = own_captions, shared_attributes
        self._rows_of = rows_by(captions, pictures)
        named = [(attributes_of(fullest(words)),) for words in captions] if shared_attributes else []
        self._rows_with = rows_by(named, pictures)
        self._rows_with.pop("", None)

    def __call__(self, numbers: Integers) -> tuple[Integers, SharedCaptions]:
        """The rows and captions of a batch. Raises UserError if groups do not divide it."""
        if len(numbers) % self.pictures:
            raise UserError(
                f"data.pictures_per_caption {self.pictures} does not divide the {len(numbers)} images that "
                "each process has of a batch: change it or the stages' batch_size"
            )
        rows, deciding = self.order(numbers), numbers.copy()
        draws = uniform(self.seed, WHICH_CAPTION, numbers)
        captions = [drawn(self.captions[row], u) for row, u in zip(rows.tolist(), draws, strict=True)]
        groups = len(numbers) // self.pictures
        own = uniform(self.seed, OWN_CAPTIONS, numbers) < self.own_captions
        alike = uniform(self.seed, SHARED_ATTRIBUTES, numbers) < self.shared_attributes
        for first in range(groups):
            shared = captions[first]
            same: Integers | None = None
            if alike[first]:
                same = self._rows_with.get(attributes_of(fullest(self.captions[rows[first]])))
            among = self._rows_of.get(shared) if same is None else same
            if among is None:
                continue
            draw = np.random.default_rng([self.seed, int(numbers[first])])
            rows[first::groups] = draw.choice(among, self.pictures, replace=False)
            if same is not None:
                captions[first::groups] = [fullest(self.captions[row]) for row in rows[first::groups]]
            else:
                if not own[first]:
                    deciding[first::groups] = numbers[first]
                for place in range(first, len(numbers), groups):
                    others = own[first] and tuple(c for c in self.captions[rows[place]] if c != shared)
                    captions[place] = drawn(others, draws[place]) if others else shared
        return rows, SharedCaptions(captions, deciding)


def rows_by(keys: Sequence[tuple[str, ...]], least: int) -> dict[str, Integers]:
    """The rows of each key that at least so many rows have.

    Args:
        keys: of each row.
        least: number of rows.
    """
    found: dict[str, list[int]] = {}
    for row, mine in enumerate(keys):
        for key in mine:
            found.setdefault(key, []).append(row)
    return {key: np.array(rows) for key, rows in found.items() if len(rows) >= least}


def fullest(captions: tuple[str, ...]) -> str:
    """The caption that names the most attributes."""
    return max(captions, key=lambda caption: caption.count(","))


def attributes_of(caption: str) -> str:
    """What a caption says after the subject: "Tabler Icons, outline" of "bell, Tabler Icons, outline"."""
    return caption.partition(",")[2].strip()


def drawn(captions: tuple[str, ...], draw: float) -> str:
    """One of a row's captions, by a number from [0, 1)."""
    return captions[int(draw * len(captions))]


class _Planned(DistributedSampler):
    """Yields whole batches, for DataLoader(sampler=..., batch_size=None).

    It inherits from DistributedSampler only because Lightning does not replace a sampler of this class. It
    divides the batches between processes itself.
    """

    def __init__(self) -> None:
        pass

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the order depends on the number of images trained."""


class TrainingBatches(_Planned):
    """This process's part of every batch, from the current number of images to the end of the epoch.

    It has no length: an epoch ends at a multiple of `epoch_kimg`, wherever it began.

    Args:
        order: from sample numbers to rows, or to rows and shared captions; None for a stream.
        stages: returns the growth stages; called at the start of each epoch.
        clock: returns the number of images trained; called at the start of each epoch.
        epoch_images: an epoch ends at each multiple of this many images.
        rank: number of this process.
        world_size: number of processes.
        turns: for a stream, maps the clock at the start of an epoch to the lane and position of each batch.
    """

    def __init__(
        self,
        order: Shuffle | CaptionGroups | None,
        stages: Callable[[], Sequence[Stage]],
        clock: Callable[[], int],
        epoch_images: int,
        rank: int = 0,
        world_size: int = 1,
        turns: Callable[[int], Iterator[StreamTurn]] = lambda start: repeat(StreamTurn()),
    ) -> None:
        super().__init__()
        self.order = order
        self.stages = stages
        self.clock = clock
        self.epoch_images = epoch_images
        self.rank = rank
        self.world_size = world_size
        self.turns = turns

    def __iter__(self) -> Iterator[BatchPlan]:
        stages = self.stages()
        for i, stage in enumerate(stages):
            if stage.batch_size % self.world_size:
                raise UserError(
                    f"stages[{i}].batch_size {stage.batch_size} is not divisible by the "
                    f"{self.world_size} processes: change it to a multiple of {self.world_size}"
                )
        start = self.clock()
        turns = self.turns(start)
        until = (start // self.epoch_images + 1) * self.epoch_images
        for seen, here in batches(stages, start, until):
            share = here.stage.batch_size // self.world_size
            numbers = seen + self.rank * share + np.arange(share, dtype=np.int64)
            rows, shared = None, None
            if isinstance(self.order, CaptionGroups):
                rows, shared = self.order(numbers)
            elif self.order is not None:
                rows = self.order(numbers)
            after = seen + here.stage.batch_size
            turn = next(turns)._replace(clock=after, ends_epoch=after >= until)
            yield BatchPlan(numbers, rows, here.stage.resolution, shared, turn)

    def __len__(self) -> int:
        raise TypeError("an epoch's number of batches depends on the clock")


class ValidationBatches(_Planned):
    """Every chosen row once, divided as rank::world_size, in the same number of batches on every process.

    Args:
        rows: the rows to score.
        batch_size: largest batch of one process.
        resolution: returns the side of the images in px; called at the start of each validation.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        rows: Integers,
        batch_size: int,
        resolution: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.rows = rows
        self.batch_size = batch_size
        self.resolution = resolution
        self.rank = rank
        self.world_size = world_size

    def _parts(self) -> list[Integers]:
        largest_share = math.ceil(len(self.rows) / self.world_size)
        count = math.ceil(largest_share / self.batch_size)
        own = self.rows[self.rank :: self.world_size]
        return [part for part in np.array_split(own, max(count, 1)) if len(part)]

    def __iter__(self) -> Iterator[BatchPlan]:
        resolution = self.resolution()
        for part in self._parts():
            yield BatchPlan(part, part, resolution)

    def __len__(self) -> int:
        return len(self._parts())
