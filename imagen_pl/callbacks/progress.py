"""One line of progress: updated in place on a terminal, written at intervals to a log file."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from typing import IO, Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer

from imagen_pl.callbacks.base import callbacks_of, gan_of
from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.callbacks.run_length import RunLength

_WINDOW_S = 20.0


class RunProgress(ProgressBar):
    """Shows stage, fade, the trained blocks if not all are, images seen, images a second and time left.

    Args:
        file: where to write; None is the standard error stream. A terminal gets one line that is updated, a
            file gets a new line at intervals.
        log_every_s: seconds between lines in a file.
        refresh_every_s: seconds between updates on a terminal.
    """

    def __init__(
        self, file: IO[str] | None = None, log_every_s: float = 30.0, refresh_every_s: float = 0.25
    ) -> None:
        super().__init__()
        self.file = file
        self.log_every_s, self.refresh_every_s = log_every_s, refresh_every_s
        self._enabled = True
        self._live = False  # the terminal shows an unfinished line
        self._shown_at = float("-inf")
        self._marks: deque[tuple[float, int]] = deque()
        self._start = _Start(0.0, 0, 0)
        self._rate = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    @property
    def _out(self) -> IO[str]:
        return sys.stderr if self.file is None else self.file

    # ------------------------------------------------------------------ events

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now, images_seen = time.monotonic(), gan_of(pl_module).images_seen
        self._marks = deque([(now, images_seen)])
        self._start = _Start(now, trainer.global_step, images_seen)
        self._shown_at = float("-inf")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self._marks.append((now, gan_of(pl_module).images_seen))
        while now - self._marks[0][0] > _WINDOW_S and len(self._marks) > 2:
            self._marks.popleft()
        if self._is_due(now):
            self._show(self._training_line(trainer, pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._out.isatty() and not trainer.sanity_checking:
            self._show("validating")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking and self._is_due(time.monotonic()):
            self._show(f"validating: batch {batch_idx + 1} of {trainer.num_val_batches[dataloader_idx]}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        scores = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
        if scores:
            kimg = gan_of(pl_module).images_seen / 1000
            text = "  ".join(f"{name} {value:.4g}" for name, value in sorted(scores.items()))
            self.print(f"{kimg:.1f} kimg  {text}")
        # Exclude the validation from the speed.
        self._marks = deque([(time.monotonic(), gan_of(pl_module).images_seen)])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown_at = float("-inf")
        self._show(self._training_line(trainer, pl_module))
        self._close_line()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close_line()

    # ------------------------------------------------------------------ the line

    def _training_line(self, trainer: Trainer, pl_module: LightningModule) -> str:
        gan = gan_of(pl_module)
        (since, before), (now, seen) = self._marks[0], self._marks[-1]
        if now > since:  # else a validation was last: keep the speed from before it
            self._rate = (seen - before) / (now - since)
        share, left_s = _share_and_time_left(trainer, self._start, now, seen)
        stages = next((len(c.stages) for c in callbacks_of(trainer) if isinstance(c, ProgressiveGrowing)), 1)
        parts = [
            f"stage {(gan.run_state.position.index if gan.run_state.position else 0) + 1}/{stages}",
            f"{gan.growth.resolution} px",
        ]
        if gan.growth.fade < 1:
            parts.append(f"fade {gan.growth.fade:.0%}")
        if gan.step_logger.trained_blocks:
            parts.append(f"training {gan.step_logger.trained_blocks}")
        parts += [f"{seen / 1000:.1f} kimg", f"{self._rate:.0f} images/s"]
        if left_s is not None:
            parts.append(f"{duration(left_s)} left")
        line = " · ".join(parts)
        return line if share is None else f"{bar(share)} {share:4.0%} {line}"

    def _is_due(self, now: float) -> bool:
        wait = self.refresh_every_s if self._out.isatty() else self.log_every_s
        return now - self._shown_at >= wait

    def _show(self, line: str) -> None:
        if not self._enabled or not self.trainer.is_global_zero:
            return
        self._shown_at = time.monotonic()
        if self._out.isatty():
            width = shutil.get_terminal_size().columns - 1
            self._out.write(f"\r{line[:width]:<{width}}")
            self._live = True
        else:
            self._out.write(line + "\n")
        self._out.flush()

    def _close_line(self) -> None:
        if self._live:
            self._out.write("\n")
            self._out.flush()
        self._live = False

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print a permanent line above the progress line."""
        if not self._enabled or not self.trainer.is_global_zero:
            return
        text = sep.join(map(str, args))
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._out.write("\r" + " " * width + "\r")
            self._live = False
        self._out.write(text + "\n")
        self._out.flush()


class _Start(NamedTuple):
    """Time, steps and images seen when this start of the training began; not 0 after a resume."""

    time_s: float
    steps: int
    images_seen: int


def _share_and_time_left(
    trainer: Trainer, start: _Start, now_s: float, images_seen: int
) -> tuple[float | None, float | None]:
    """Share of the run that is done, 0 to 1, and seconds left; None where unknown.

    If there are several limits, the one that ends the run first counts.
    """
    limits: list[tuple[float, float]] = []
    max_images = 0
    for callback in callbacks_of(trainer):
        if isinstance(callback, RunLength):
            max_images = callback.max_images or 0
        if isinstance(callback, Timer | RunLength) and (left := callback.time_remaining()) is not None:
            elapsed, left = callback.time_elapsed(), max(left, 0.0)  # validation may run past the limit
            limits.append((elapsed / max(elapsed + left, 1e-9), left))
    epoch_images = getattr(getattr(trainer, "datamodule", None), "epoch_images", 0)
    for end, began, done in (
        (trainer.max_steps, start.steps, trainer.global_step),
        (max_images, start.images_seen, images_seen),
        ((trainer.max_epochs or -1) * epoch_images, start.images_seen, images_seen),
    ):
        if end > 0 and done > began:
            each_s = (now_s - start.time_s) / (done - began)
            limits.append((min(done / end, 1.0), max(end - done, 0) * each_s))
    return min(limits, key=lambda way: way[1]) if limits else (None, None)


def bar(share: float, width: int = 20) -> str:
    """A bar of `width` characters, filled by a share of 0 to 1."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return "█" * full + "░" * (width - full)


def duration(seconds: float) -> str:
    """A duration as text, for example 0:07, 12:30, 3:05:00 or 2 d 03:05."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
