"""Pure functions of the one clock, `images_seen`: everything that changes during training.

No state is kept, so a resumed run needs nothing but the clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from imagen_pl.types import Growth, TextFeatures


@runtime_checkable
class Schedule(Protocol):
    """A number that depends on how many images have been seen."""

    def __call__(self, images_seen: int) -> float: ...


@dataclass
class Constant:
    """The same value throughout.

    Args:
        value: the value.
    """

    value: float

    def __call__(self, images_seen: int) -> float:
        return self.value


@dataclass
class Linear:
    """A straight line from `start` to `end`, then `end`.

    Args:
        start: value until `begin_kimg`.
        end: value from `begin_kimg + kimg` on.
        kimg: length of the way, in thousands of images.
        begin_kimg: when it sets out, in thousands of images.
    """

    start: float
    end: float
    kimg: float
    begin_kimg: float = 0.0

    def __call__(self, images_seen: int) -> float:
        return self.start + (self.end - self.start) * _progress(images_seen, self.begin_kimg, self.kimg)


@dataclass
class Cosine:
    """Half a cosine wave from `start` to `end`, then `end` (arXiv:1608.03983, eq. 5, without restarts).

    Args:
        start: value until `begin_kimg`.
        end: value from `begin_kimg + kimg` on.
        kimg: length of the way, in thousands of images.
        begin_kimg: when it sets out, in thousands of images.
        warmup_kimg: rise from 0 in a straight line over the first so many thousand images: Adam's first
            steps go in directions that it has seen once.
    """

    start: float
    end: float
    kimg: float
    begin_kimg: float = 0.0
    warmup_kimg: float = 0.0

    def __call__(self, images_seen: int) -> float:
        progress = _progress(images_seen, self.begin_kimg, self.kimg)
        value = self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2
        return value * _progress(images_seen, 0.0, self.warmup_kimg)


def _progress(images_seen: int, begin_kimg: float, kimg: float) -> float:
    """Share of the way covered, 0 to 1."""
    if kimg <= 0:
        return 1.0 if images_seen >= begin_kimg * 1000 else 0.0
    return min(max((images_seen / 1000 - begin_kimg) / kimg, 0.0), 1.0)


@dataclass
class Stage:
    """One stage of progressive growing (arXiv:1710.10196, section 2).

    Args:
        resolution: side of the images, px; a power of two.
        kimg: length of the stage in thousands of images, its fade included. The last stage goes on
            until training ends.
        batch_size: images a step, over all processes together.
        fade_kimg: how long the newest blocks take to fade in, in thousands of images.
        generator_lr: learning rate of the generator in this stage; None keeps the optimizer's own.
        discriminator_lr: learning rate of the discriminator in this stage; None keeps the optimizer's own.
        penalty_weight: weight of every gradient penalty in this stage; None keeps each penalty's own.
    """

    resolution: int
    kimg: float
    batch_size: int
    fade_kimg: float = 0.0
    generator_lr: float | None = None
    discriminator_lr: float | None = None
    penalty_weight: float | None = None


@dataclass(frozen=True)
class StagePosition:
    """Where a run stands: the stage's place in the list, the stage, and how far it has faded in."""

    index: int
    stage: Stage
    growth: Growth


def check_stages(stages: Sequence[Stage]) -> None:
    """Raise ValueError, naming the stage, if the list cannot be trained."""
    if not stages:
        raise ValueError("stages is empty: name at least one stage")
    for i, stage in enumerate(stages):
        where = f"stages[{i}]"
        if stage.resolution < 4 or stage.resolution & (stage.resolution - 1):
            raise ValueError(
                f"{where}.resolution {stage.resolution} is not a power of two from 4 up: "
                "use 4, 8, 16, 32, 64, 128, 256, 512 or 1024"
            )
        if i and stage.resolution <= stages[i - 1].resolution:
            raise ValueError(
                f"{where}.resolution {stage.resolution} does not grow on stages[{i - 1}]'s "
                f"{stages[i - 1].resolution}: list the stages from small to large"
            )
        if stage.batch_size < 2:
            raise ValueError(
                f"{where}.batch_size {stage.batch_size} is too small: mismatched captions come from "
                "the other images of the batch, so use 2 or more"
            )
        if stage.kimg <= 0:
            raise ValueError(f"{where}.kimg {stage.kimg} must be more than 0")
        if not 0 <= stage.fade_kimg <= stage.kimg:
            raise ValueError(
                f"{where}.fade_kimg {stage.fade_kimg} is not between 0 and the stage's kimg {stage.kimg}"
            )


def position(stages: Sequence[Stage], images_seen: int) -> StagePosition:
    """The stage and fade that rule the batch which starts at `images_seen`.

    A stage that starts in the middle of a batch takes over with the next batch.
    """
    for index, stage in enumerate(stages):
        last = index == len(stages) - 1
        if last or images_seen < begin_of(stages, index + 1):
            # In whole images, so that a fade ends with the batch that it should end with.
            begin, length = begin_of(stages, index), round(stage.fade_kimg * 1000)
            # The first stage has nothing to fade from.
            fade = min((images_seen - begin) / length, 1.0) if index and length else 1.0
            return StagePosition(index, stage, Growth(stage.resolution, fade))
    raise ValueError("stages is empty: name at least one stage")


def begin_of(stages: Sequence[Stage], index: int) -> int:
    """The clock at which a stage begins, in images."""
    start = 0.0
    for stage in stages[:index]:
        start += stage.kimg
    return round(start * 1000)


def batches(stages: Sequence[Stage], images_seen: int, until: int) -> Iterator[tuple[int, StagePosition]]:
    """Every batch from `images_seen` to `until`: the clock at its start, and its position.

    The data set plans its batches with this and the growth callback follows the same clock, so
    both agree without talking to each other, however far ahead the workers read.
    """
    while images_seen < until:
        here = position(stages, images_seen)
        yield images_seen, here
        images_seen += here.stage.batch_size


@dataclass
class RunState:
    """Where a run stands. The LightningModule, the data module and the callbacks share one.

    The module counts the images, the growth callback sets the stages and the position before each batch, and
    the data module reads both: it plans its batches by them.

    images_seen: the clock, images over all processes.
    stages: the growth stages; empty where no growth is set up.
    position: the stage of the current batch, and how far it has faded in; None before the first.
    growth: how far the networks have grown; after a checkpoint is loaded, that of the checkpoint.
    text_lookup: features of captions that were encoded before the run; None encodes them in each step.
    """

    growth: Growth
    images_seen: int = 0
    stages: list[Stage] = field(default_factory=list)
    position: StagePosition | None = None
    text_lookup: Callable[[list[str]], TextFeatures] | None = None

    @property
    def stage(self) -> Stage | None:
        """The stage of the current batch; None before there is one."""
        return None if self.position is None else self.position.stage

    def set_position(self, position: StagePosition) -> None:
        """Take over the stage and the growth of the next batch."""
        self.position, self.growth = position, position.growth
