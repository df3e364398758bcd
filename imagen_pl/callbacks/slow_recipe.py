"""Warns after twenty batches if a run will see far fewer images than its recipe is made for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from imagen_pl.callbacks.base import callbacks_of, is_dry_run
from imagen_pl.schedules import Cosine, Linear
from imagen_pl.training.clocked_module import ClockedModule
from imagen_pl.training.precision import bfloat16_support

# Speed is measured from the fifth batch, or the last one within 10 seconds, to the twentieth, or the first
# one after 30 seconds.
_WARM_UP, _WARM_UP_S = 5, 10.0
_BATCHES, _BATCHES_S = 20, 30.0
_MIN_SHARE = 0.5  # share of the images that the recipe is made for
SCHEDULE = "--model.learning_rate_schedule.init_args.kimg"


class RunEnd(NamedTuple):
    """A limit of a run.

    Attributes:
        images_seen: the clock when the limit is reached.
        setting: its name on the command line.
        enough: the value with which the run sees as many images as its recipe is made for.
    """

    images_seen: float
    setting: str
    enough: str


class SlowRecipe(Callback):
    """Compares the number of images a run will see with the number its recipe is made for.

    A recipe is made for the number of images at which its learning-rate schedule ends: `begin_kimg + kimg` of
    `model.learning_rate_schedule`, even where a `share` counts instead. There is no check if the schedule
    names no number of images, or if the run has no limit. The speed is measured over twenty batches, or over
    30 seconds if they take longer, and again at each new resolution, since larger images are slower. At most
    one warning is printed a start.

    Args:
        say: prints a line to the user; None prints above the progress bar where there is one.
        clock: returns the time in seconds.
    """

    def __init__(
        self, say: Callable[[str], None] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.say, self.clock = say, clock
        self._is_done = False
        self._resolution = 0
        self._batches = 0  # at this resolution
        self._measured = False  # at this resolution
        self._first_s = 0.0
        self._mark = _Mark(0.0, 0, 0)
        self._validation_began_s = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_done = is_dry_run(trainer) or recipe_images(pl_module) is None
        self._resolution = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_done:
            return
        assert isinstance(pl_module, ClockedModule)
        now = _Mark(self.clock(), pl_module.images_seen, trainer.global_step)
        if batch.images.shape[-1] != self._resolution:
            self._resolution = batch.images.shape[-1]
            self._batches, self._measured, self._first_s, self._mark = 0, False, now.time_s, now
        self._batches += 1
        took_s = now.time_s - self._first_s
        if self._batches <= _WARM_UP and took_s < _WARM_UP_S:
            self._mark = now
        elif not self._measured and (self._batches >= _BATCHES or took_s >= _BATCHES_S):
            self._measured = True
            self._check(trainer, pl_module, now)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_began_s = self.clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pause_s = self.clock() - self._validation_began_s
        self._mark = self._mark._replace(time_s=self._mark.time_s + pause_s)
        self._first_s += pause_s

    def _check(self, trainer: Trainer, pl_module: LightningModule, now: _Mark) -> None:
        made_for = recipe_images(pl_module)
        assert made_for is not None
        speed = (now.images_seen - self._mark.images_seen) / max(now.time_s - self._mark.time_s, 1e-9)
        images_per_step = (now.images_seen - self._mark.images_seen) / max(now.steps - self._mark.steps, 1)
        ends = run_ends(trainer, now.images_seen, made_for, speed, images_per_step)
        if not ends or ends[0].images_seen >= _MIN_SHARE * made_for:
            return
        self._is_done = True
        if trainer.is_global_zero:
            by_share = pl_module.learning_rate_schedule.share is not None  # type: ignore[union-attr]
            self._report(trainer, warning(trainer, ends, made_for, speed, by_share))

    def _report(self, trainer: Trainer, line: str) -> None:
        bar = trainer.progress_bar_callback
        say = self.say or (print if bar is None else bar.print)
        say(line)


class _Mark(NamedTuple):
    """Time, clock and step count at the end of a batch."""

    time_s: float
    images_seen: int
    steps: int


def recipe_images(module: LightningModule) -> int | None:
    """Number of images a recipe is made for: the end of its learning-rate schedule; None if it has no end."""
    schedule = getattr(module, "learning_rate_schedule", None)
    if not isinstance(schedule, Linear | Cosine) or schedule.kimg is None:
        return None
    return round(1000 * (schedule.begin_kimg + schedule.kimg))


def run_ends(
    trainer: Trainer, seen: int, made_for: int, images_per_s: float, images_per_step: float
) -> list[RunEnd]:
    """The limits of a run, sorted by the number of images at which they end it."""
    ends = []
    for callback in callbacks_of(trainer):
        left_s = callback.time_remaining() if hasattr(callback, "time_remaining") else None
        if left_s is not None:
            whole_s = callback.time_elapsed() + (made_for - seen) / images_per_s  # type: ignore[attr-defined]
            ends.append(RunEnd(seen + left_s * images_per_s, "--trainer.max_time", days_to_seconds(whole_s)))
        limit = getattr(callback, "max_images", None)
        if limit is not None:
            ends.append(RunEnd(limit, "--max_images", str(made_for)))
    if trainer.max_steps > 0:
        steps = trainer.global_step + (made_for - seen) / images_per_step
        end = seen + (trainer.max_steps - trainer.global_step) * images_per_step
        ends.append(RunEnd(end, "--trainer.max_steps", str(math.ceil(steps))))
    epoch_images = getattr(getattr(trainer, "datamodule", None), "epoch_images", 0)
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and epoch_images:
        epochs = str(math.ceil(made_for / epoch_images))
        ends.append(RunEnd(trainer.max_epochs * epoch_images, "--trainer.max_epochs", epochs))
    return sorted(ends)


def warning(trainer: Trainer, ends: list[RunEnd], made_for: int, images_per_s: float, by_share: bool) -> str:
    """The warning: how many images the run will see, how many its recipe is made for, and what to do.

    Args:
        trainer: trainer of the run.
        ends: the limits of the run, first one first.
        made_for: number of images that the recipe is made for.
        images_per_s: measured speed.
        by_share: whether the learning-rate schedule adapts to the length of the run.
    """
    end = round_to_two_digits(ends[0].images_seen)
    longer = " ".join(f"{e.setting} {e.enough}" for e in ends if e.images_seen < made_for)
    speed = f"{images_per_s:.0f}" if images_per_s >= 10 else f"{images_per_s:.2g}"
    device = trainer.strategy.root_device.type
    slow_format = trainer.precision.startswith("bf16") and not bfloat16_support(device).fast
    advice = [
        *(["compute in float32 (--trainer.precision 32-true)"] if slow_format else []),
        f"let it run longer ({longer})",
        *([] if by_share else [f"shorten the schedule ({SCHEDULE} {end / 1000:g})"]),
        "use narrower networks (channels)",
    ]
    return (
        f"Warning: at {speed} images/s this run will see about {end:,} images, but its recipe is made for "
        f"{made_for:,} (kimg of its learning-rate schedule). To get more from it: {'; '.join(advice)}."
    )


def round_to_two_digits(images: float) -> int:
    """Round an estimate to two significant digits: 11,776 becomes 12,000."""
    return int(float(f"{max(images, 1):.1e}"))


def days_to_seconds(seconds: float) -> str:
    """A duration as days:hours:minutes:seconds, for `--trainer.max_time`; rounded up to a full minute."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 1440:02}:{minutes // 60 % 24:02}:{minutes % 60:02}:00"
