"""Schedules and growth stages as pure functions of the clock, `images_seen`.

They keep no state, so a resumed run needs only the clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.types import Growth, TextFeatures


@runtime_checkable
class Schedule(Protocol):
    """A value that depends on the number of images seen."""

    def __call__(self, images_seen: int) -> float: ...


@dataclass
class Constant:
    """A constant value.

    Args:
        value: the value.
    """

    value: float

    def __call__(self, images_seen: int) -> float:
        return self.value


@dataclass
class RunShare:
    """Share of the run that is done, 0 to 1: linear in the clock since the latest measurement.

    If a run is limited by images, the number of images it will see is known from the start. If it is limited
    by time, that number is estimated repeatedly from the speed. A checkpoint stores the latest estimate, so
    between two measurements the share depends only on the clock.

    Attributes:
        images: the clock at the latest measurement.
        share: share of the run that was done at that clock.
        images_per_run: images that a whole run would see at the measured speed; infinite until it is known.
    """

    images: int = 0
    share: float = 0.0
    images_per_run: float = math.inf

    def __call__(self, images_seen: int) -> float:
        return min(self.share + (images_seen - self.images) / self.images_per_run, 1.0)

    def images_at(self, share: float) -> float:
        """The clock at which a share of the run is done; infinite if the speed is not known yet."""
        if share <= self.share:
            return self.images
        return self.images + (share - self.share) * self.images_per_run

    def measure(self, images_seen: int, images_left: float) -> None:
        """Continue linearly from `images_seen`, reaching 1 after `images_left` more images."""
        self.share, self.images = self(images_seen), images_seen
        self.images_per_run = math.inf if self.share >= 1 else max(images_left, 1.0) / (1 - self.share)


class _Ramp:
    """Progress of a schedule, counted in images or, with `share`, as a share of the run."""

    kimg: float | None
    begin_kimg: float
    share: float | None
    begin_share: float
    run: RunShare | None = None  # what `share` is a share of; RunLength provides it

    def __post_init__(self) -> None:
        if self.kimg is None and self.share is None:
            raise ValueError(f"{type(self).__name__} has no length: give kimg, thousands of images, or share")

    def _done(self, images_seen: int) -> float:
        """Progress of the schedule, 0 to 1."""
        if self.share is None:
            return _progress(images_seen / 1000, self.begin_kimg, self.kimg or 0.0)
        if self.run is None:
            raise UserError(
                f"{type(self).__name__} is given as a share of the run: add the callback RunLength, which "
                "knows how long the run is"
            )
        return _progress(self.run(images_seen), self.begin_share, self.share)


@dataclass
class Linear(_Ramp):
    """A straight line from `start` to `end`, then `end`.

    Give its length in thousands of images (`kimg`) or as a share of the run (`share`, which counts if both
    are given).

    Args:
        start: value until it begins.
        end: value after it.
        kimg: length, thousands of images.
        begin_kimg: where it begins, thousands of images.
        share: length as a share of the run, 0 to 1; the run's length is `--trainer.max_time`, `max_steps` or
            `--max_images`.
        begin_share: where it begins, as a share of the run; goes with `share`.
    """

    start: float
    end: float
    kimg: float | None = None
    begin_kimg: float = 0.0
    share: float | None = None
    begin_share: float = 0.0

    def __call__(self, images_seen: int) -> float:
        return self.start + (self.end - self.start) * self._done(images_seen)


@dataclass
class Cosine(_Ramp):
    """Half a cosine wave from `start` to `end`, then `end` (arXiv:1608.03983, eq. 5, without restarts).

    Give its length in thousands of images (`kimg`) or as a share of the run (`share`, which counts if both
    are given).

    Args:
        start: value until it begins.
        end: value after it.
        kimg: length, thousands of images. Of the learning-rate schedule it also says how many images the
            recipe is made for: a run that will see less than half of them prints a warning.
        begin_kimg: where it begins, thousands of images.
        warmup_kimg: rise linearly from 0 over this many thousand images at the start, since Adam's first
            steps rest on few gradients.
        share: length as a share of the run, 0 to 1; the run's length is `--trainer.max_time`, `max_steps` or
            `--max_images`.
        begin_share: where it begins, as a share of the run; goes with `share`.
    """

    start: float
    end: float
    kimg: float | None = None
    begin_kimg: float = 0.0
    warmup_kimg: float = 0.0
    share: float | None = None
    begin_share: float = 0.0

    def __call__(self, images_seen: int) -> float:
        done = self._done(images_seen)
        value = self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2
        return value * _progress(images_seen / 1000, 0.0, self.warmup_kimg)


def _progress(now: float, begin: float, length: float) -> float:
    """Progress from `begin` over `length`, 0 to 1."""
    if length <= 0:
        return 1.0 if now >= begin else 0.0
    return min(max((now - begin) / length, 0.0), 1.0)


@dataclass
class Stage:
    """One stage of progressive growing (arXiv:1710.10196, section 2).

    Give the lengths of all stages in thousands of images (`kimg`, `fade_kimg`), or of all as shares of the
    run (`share`, `fade_share`). Where one stage has a share, the shares count and `kimg` is ignored, so that
    an overlay with shares works with a recipe in kimg. The last stage continues until training ends.

    Args:
        resolution: side of the images, px; a power of two.
        kimg: length of the stage in thousands of images, its fade included.
        batch_size: images a step, over all processes together.
        fade_kimg: how long the newest blocks take to fade in, in thousands of images.
        generator_lr: learning rate of the generator in this stage; None keeps the optimizer's own.
        discriminator_lr: learning rate of the discriminator in this stage; None keeps the optimizer's own.
        penalty_weight: weight of every gradient penalty in this stage; None keeps each penalty's own.
        share: length of the stage as a share of the run, 0 to 1, its fade included; the last stage may leave
            it out. The run's length is `--trainer.max_time`, `max_steps` or `--max_images`.
        fade_share: how long the newest blocks take to fade in, as a share of the run.
    """

    resolution: int
    kimg: float | None = None
    batch_size: int = 0  # required: `check_stages` raises on 0
    fade_kimg: float = 0.0
    generator_lr: float | None = None
    discriminator_lr: float | None = None
    penalty_weight: float | None = None
    share: float | None = None
    fade_share: float = 0.0


_NEVER = 10**15  # images: begin of a stage while the run's speed is not known


@dataclass(frozen=True)
class StagePosition:
    """Where a run is: index of the stage, the stage, and the growth with its fade."""

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
    _check_shares(stages) if by_share(stages) else _check_kimg(stages)


def by_share(stages: Sequence[Stage]) -> bool:
    """Whether the stages' lengths are shares of the run."""
    return any(stage.share is not None or stage.fade_share for stage in stages) or (
        len(stages) == 1 and stages[0].kimg is None
    )


def _check_kimg(stages: Sequence[Stage]) -> None:
    for i, stage in enumerate(stages):
        where = f"stages[{i}]"
        if stage.kimg is None:
            raise ValueError(f"{where} has no length: give kimg, thousands of images, or share, of the run")
        if stage.kimg <= 0:
            raise ValueError(f"{where}.kimg {stage.kimg} must be more than 0")
        if not 0 <= stage.fade_kimg <= stage.kimg:
            raise ValueError(
                f"{where}.fade_kimg {stage.fade_kimg} is not between 0 and the stage's kimg {stage.kimg}"
            )


def _check_shares(stages: Sequence[Stage]) -> None:
    for i, stage in enumerate(stages):
        where = f"stages[{i}]"
        if stage.share is None and i < len(stages) - 1:
            raise ValueError(f"{where}.share is missing: only the last stage may leave it out")
        if stage.share is not None and not 0 < stage.share <= 1:
            raise ValueError(f"{where}.share {stage.share} is not between 0 and 1")
    lengths = stage_shares(stages)
    total = sum(lengths)
    if lengths[-1] <= 1e-9 or total > 1 + 1e-9:
        raise ValueError(
            f"the stages' shares add up to {total - min(lengths[-1], 0):g}: together they may be 1 at most, "
            "and the last stage needs some of it"
        )
    for i, (stage, length) in enumerate(zip(stages, lengths, strict=True)):
        if not 0 <= stage.fade_share <= length + 1e-9:
            raise ValueError(
                f"stages[{i}].fade_share {stage.fade_share} is not between 0 and the stage's share {length:g}"
            )


def stage_shares(stages: Sequence[Stage]) -> list[float]:
    """Each stage's share of the run; the last takes what is left."""
    shares = [stage.share or 0.0 for stage in stages]
    return [*shares[:-1], 1 - sum(shares[:-1])] if stages[-1].share is None else shares


def plan_stages(
    stages: Sequence[Stage], run: RunShare, begins: Sequence[int], settled: int
) -> tuple[list[Stage], list[int]]:
    """Plan stages given as shares of the run: their lengths in images, as far as known.

    Args:
        stages: stages with `share` and `fade_share`.
        run: share of the run that is done, by the clock.
        begins: the clock at which each stage begins, by the plan so far; empty at the start of a run.
        settled: batches up to this clock are already planned and keep their stage.

    Returns:
        the stages with `kimg` and `fade_kimg`, and the clock at which each begins.
    """
    shares = stage_shares(stages)
    planned = [0]
    for i in range(1, len(stages)):
        if i < len(begins) and begins[i] < settled:
            planned.append(begins[i])
            continue
        ideal = min(run.images_at(sum(shares[:i])), _NEVER)
        planned.append(max(math.ceil(ideal), settled, planned[-1] + stages[i - 1].batch_size))
    ends = [*planned[1:], planned[-1] + math.ceil(min(shares[-1] * run.images_per_run, _NEVER))]
    lengths = [(end - begin) / 1000 for begin, end in zip(planned, ends, strict=True)]
    known = [
        replace(s, kimg=kimg, fade_kimg=kimg * min(s.fade_share / share, 1.0))
        for s, kimg, share in zip(stages, lengths, shares, strict=True)
    ]
    return known, planned


def position(stages: Sequence[Stage], images_seen: int) -> StagePosition:
    """The stage and fade of the batch that starts at `images_seen`.

    A stage that starts in the middle of a batch takes over with the next batch.
    """
    for index, stage in enumerate(stages):
        last = index == len(stages) - 1
        if last or images_seen < begin_of(stages, index + 1):
            # In whole images, so that the fade ends exactly at the intended batch.
            begin, length = begin_of(stages, index), round(stage.fade_kimg * 1000)
            # The first stage has nothing to fade from.
            fade = min((images_seen - begin) / length, 1.0) if index and length else 1.0
            return StagePosition(index, stage, Growth(stage.resolution, fade))
    raise ValueError("stages is empty: name at least one stage")


def begin_of(stages: Sequence[Stage], index: int) -> int:
    """The clock at which a stage begins, in images."""
    start = 0.0
    for stage in stages[:index]:
        if stage.kimg is None:
            raise ValueError(
                f"the stage of {stage.resolution} px is a share of the run, which is not planned yet"
            )
        start += stage.kimg
    return round(start * 1000)


def batches(stages: Sequence[Stage], images_seen: int, until: int) -> Iterator[tuple[int, StagePosition]]:
    """Every batch from `images_seen` to `until`: the clock at its start, and its position.

    The data module plans its batches with this function, and the growth callback follows the same clock, so
    both agree without communication, however many batches the workers prefetch.
    """
    while images_seen < until:
        here = position(stages, images_seen)
        yield images_seen, here
        images_seen += here.stage.batch_size


@dataclass
class RunState:
    """Where a run is. The LightningModule, the data module and the callbacks share one object.

    The module counts the images. The growth callback sets the stages, and the position before each batch. The
    data module reads both to plan its batches.

    images_seen: the clock, images over all processes.
    stages: the growth stages; empty where no growth is set up.
    position: the stage of the current batch, and how far it has faded in; None before the first.
    growth: how far the networks have grown; after loading a checkpoint, the growth of the checkpoint.
    text_lookup: gives the features of captions encoded before the run; None encodes captions in each step.
    latent_lookup: gives the latents of training rows at a resolution, encoded before the run; None encodes
        images in each step, where the generator draws latents.
    """

    growth: Growth
    images_seen: int = 0
    stages: list[Stage] = field(default_factory=list)
    position: StagePosition | None = None
    text_lookup: Callable[[list[str]], TextFeatures] | None = None
    latent_lookup: Callable[[NDArray[np.int64], int], Float[Tensor, "b c h w"]] | None = None

    @property
    def stage(self) -> Stage | None:
        """The stage of the current batch; None before there is one."""
        return None if self.position is None else self.position.stage

    def set_position(self, position: StagePosition) -> None:
        """Set the stage and the growth of the next batch."""
        self.position, self.growth = position, position.growth
