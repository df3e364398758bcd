"""Length of a run: its limits in images, steps or time, and settings given as shares of the run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_info

from imagen_pl.callbacks.base import callbacks_of, gan_of
from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.models.generators.latent import LatentGenerator
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.schedules import Cosine, Linear, RunShare, begin_of, position

_FIRST_MEASUREMENT = 3  # batches; then after twice as many each time
_WARN_AFTER = 20  # batches
_LONG_VALIDATION_S = 10.0
_NEARLY_DONE = 0.9  # of the schedules


class ReachedLimit(NamedTuple):
    """A limit that ended a run: the setting, its value, and twice that value."""

    setting: str
    value: str
    twice: str


class RunLength(Callback):
    """Ends a run at its limit, and plans the stages and schedules that are given as shares of the run.

    The time limit covers everything since the start of `fit`, over all resumes: preparing the data, training
    and validation. Time for the last validation is reserved once an earlier validation was timed.

    If a run is limited by images or steps, its length is known from the start. If it is limited by time, the
    length is estimated from the speed: after 3 batches of each stage and of each start, then after 6, 12, 24
    and so on. A checkpoint stores the latest estimate.

    Args:
        max_images: end after this many images; None sets no limit.
        max_time: end after this time, in the format "DD:HH:MM:SS"; None sets no limit.
    """

    def __init__(
        self, max_images: int | None = None, max_time: str | timedelta | dict[str, int] | None = None
    ) -> None:
        if max_images is not None and max_images < 1:
            raise UserError(f"max_images {max_images} must be 1 or more")
        self.max_images = max_images
        self.max_time_s = None if max_time is None else Timer(max_time).time_remaining()
        self.share = RunShare()
        self._began_at: float | None = None  # time of this start
        self._elapsed_before_s = 0.0
        self._limits: list[float | None] | None = None  # the limits when the share was measured
        self._validation_s = 0.0
        self._validation_began_at = 0.0
        # Time and images at the end of the first batch of a stage.
        self._mark: tuple[float, int] | None = None
        self._stage = -1
        self._batches = 0  # since the mark
        self._trained = 0  # batches since this start
        self._checked = False  # whether `_check_last_stage` has run

    # ------------------------------------------------------------------ elapsed time

    def begin(self) -> None:
        """Start timing, if it has not started yet."""
        if self._began_at is None:
            self._began_at = time.monotonic()

    def time_elapsed(self) -> float:
        """Seconds that the run has taken so far, earlier starts included."""
        return self._elapsed_before_s + (0.0 if self._began_at is None else time.monotonic() - self._began_at)

    def time_remaining(self) -> float | None:
        """Seconds of training left, excluding the last validation; None without a time limit."""
        if self.max_time_s is None:
            return None
        return self.max_time_s - min(self._validation_s, self.max_time_s / 2) - self.time_elapsed()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.begin()

    # ------------------------------------------------------------------ the run

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gan, growth = gan_of(pl_module), _growth(trainer)
        for schedule in _schedules_by_share(pl_module):
            schedule.run = self.share
        used = (growth is not None and growth.by_share) or any(_schedules_by_share(pl_module))
        limits = [self.max_time_s, self.max_images, trainer.max_steps, trainer.max_epochs]
        if used and not any(limit and limit > 0 for limit in limits):
            raise UserError(
                "stages or schedules are given as shares of the run, but the run has no limit: set "
                "--trainer.max_time, --max_images or --trainer.max_steps"
            )
        left = self._images_left(trainer, gan.images_seen)
        if limits != self._limits and left < math.inf:
            self.share.measure(gan.images_seen, left)
        if limits != self._limits and any(_schedules_by_share(pl_module)):
            self._warn_of_ended_schedules(trainer, gan)
        self._limits = limits
        if growth is not None:
            growth.plan(self.share, settled=gan.images_seen)
        if left < math.inf:
            self._check_last_stage(trainer, growth, gan.images_seen, gan.images_seen + left)
        if gan.images_seen:  # a new run trains at least one batch, so that it can be resumed
            self._stop_if_over(trainer, gan.images_seen)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        images_seen, growth = gan_of(pl_module).images_seen, _growth(trainer)
        self._trained += 1
        stage = 0 if growth is None else position(growth.stages, images_seen).index
        if stage != self._stage:  # the next batch is the first of a stage, or of this start
            changed, self._stage, self._mark, self._batches = self._stage >= 0, stage, None, 0
            if changed and trainer.max_steps > 0:
                self._measure(trainer, images_seen, None)
        elif self._mark is None:
            self._mark = (float(trainer.strategy.broadcast(self.time_elapsed())), images_seen)
        else:
            self._batches += 1  # since the mark
            times, rest = divmod(self._batches, _FIRST_MEASUREMENT)
            if self.max_time_s is not None and rest == 0 and times & (times - 1) == 0:
                self._measure(trainer, images_seen, self._images_per_second(trainer, images_seen))
            if self.max_time_s is not None and self._trained >= _WARN_AFTER and not self._checked:
                self._checked = True
                images_per_s = self._images_per_second(trainer, images_seen)
                left = self._images_left(trainer, images_seen, images_per_s)
                self._check_last_stage(trainer, growth, images_seen, images_seen + left)
        self._stop_if_over(trainer, images_seen)

    def _images_per_second(self, trainer: Trainer, images_seen: int) -> float:
        """Images a second since the mark, validation included; the same on every process."""
        assert self._mark is not None
        began_s, before = self._mark
        seconds = float(trainer.strategy.broadcast(self.time_elapsed())) - began_s
        return (images_seen - before) / max(seconds, 1e-6)

    def _measure(self, trainer: Trainer, images_seen: int, images_per_s: float | None) -> None:
        left = self._images_left(trainer, images_seen, images_per_s)
        if left < math.inf:
            self.share.measure(images_seen, left)
        if (growth := _growth(trainer)) is not None:
            growth.plan(
                self.share, settled=images_seen + self._prefetched_images(trainer, growth, images_seen)
            )

    def _images_left(self, trainer: Trainer, images_seen: int, images_per_s: float | None = None) -> float:
        """Images until the first limit is reached; infinite if no limit is known."""
        left = [math.inf]
        if self.max_images is not None:
            left.append(self.max_images - images_seen)
        if trainer.max_steps > 0:
            # Lightning counts the steps of all optimizers.
            batches = (trainer.max_steps - trainer.global_step) / max(len(trainer.optimizers), 1)
            left.append(batches * _batch_size(trainer, images_seen))
        epoch_images = getattr(getattr(trainer, "datamodule", None), "epoch_images", 0)
        if trainer.max_epochs is not None and trainer.max_epochs > 0 and epoch_images:
            left.append(trainer.max_epochs * epoch_images - images_seen)
        if images_per_s is not None and (seconds := self.time_remaining()) is not None:
            left.append(images_per_s * float(trainer.strategy.broadcast(seconds)))
        return max(min(left), 0.0)

    def _prefetched_images(self, trainer: Trainer, growth: ProgressiveGrowing, images_seen: int) -> int:
        """Images in the batches that the loader may already have planned."""
        loader = trainer.train_dataloader
        workers = getattr(loader, "num_workers", 0)
        batches = 2 + workers * (getattr(loader, "prefetch_factor", None) or 2)
        here = position(growth.stages, images_seen).index
        return int(batches * max(stage.batch_size for stage in growth.stages[here : here + 2]))

    def _stop_if_over(self, trainer: Trainer, images_seen: int) -> None:
        over = self.max_images is not None and images_seen >= self.max_images
        if (left := self.time_remaining()) is not None:
            over = over or bool(trainer.strategy.broadcast(left <= 0))
        trainer.should_stop = trainer.should_stop or over

    # ------------------------------------------------------------------ messages

    def reached_limits(self, trainer: Trainer, images_seen: int) -> list[ReachedLimit]:
        """The limits that have ended the run."""
        found = []
        if self.max_time_s is not None and (left := self.time_remaining()) is not None and left <= 0:
            twice = 2 * max(self.max_time_s, self.time_elapsed())
            found.append(
                ReachedLimit("--trainer.max_time", _as_max_time(self.max_time_s), _as_max_time(twice))
            )
        if self.max_images is not None and images_seen >= self.max_images:
            found.append(ReachedLimit("--max_images", str(self.max_images), str(2 * self.max_images)))
        for setting, limit, done in (
            ("--trainer.max_steps", trainer.max_steps, trainer.global_step),
            ("--trainer.max_epochs", trainer.max_epochs or -1, trainer.current_epoch),
        ):
            if 0 < limit <= done:
                found.append(ReachedLimit(setting, str(limit), str(2 * limit)))
        return found

    def _warn_of_ended_schedules(self, trainer: Trainer, gan: TextToImageGAN) -> None:
        """Warn if a resumed run with a new limit has nothing left of its schedules."""
        done = self.share(gan.images_seen)
        if done < _NEARLY_DONE or not gan.images_seen:
            return
        schedule, rate = gan.learning_rate_schedule, ""
        if schedule is not None:
            rate = f" (the learning rates at {schedule(gan.images_seen):.2g} times their settings)"
        another = ""
        if isinstance(gan.generator, (StyleGenerator, LatentGenerator)):
            another = (
                " For new schedules start another run from this one: leave out --ckpt_path, and give --name "
                "and --model.generator.init_from"
            )
        say(
            trainer,
            f"warning: this run has a new limit, but {done:.0%} of its schedules had passed before. They do "
            f"not start again, so the rest is trained with their last values{rate}.{another}",
        )

    def _check_last_stage(
        self, trainer: Trainer, growth: ProgressiveGrowing | None, images_seen: int, end: float
    ) -> None:
        """Warn if the run ends before its last stage."""
        if growth is None or growth.by_share:
            return
        last = len(growth.stages) - 1
        begin, reached = begin_of(growth.stages, last), position(growth.stages, max(int(end) - 1, 0))
        if images_seen >= begin or reached.index == last:
            return
        stage, final = reached.stage.resolution, growth.stages[last].resolution
        say(
            trainer,
            f"warning: this run will see about {round(end):,} images and end at {stage} px, in stage "
            f"{reached.index + 1} of {last + 1}; the stage of {final} px begins at {begin:,}. Give it more "
            f"time or images, shorten the stages (--growth.kimg_scale {0.6 * end / begin:.2g}), or give them "
            "as shares of the run (growth.stages: share in place of kimg)",
        )

    # ------------------------------------------------------------------ validation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_began_at = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx or self.max_time_s is None or trainer.state.fn != "fit":
            return
        batches = sum(n for n in trainer.num_val_batches if n < math.inf)
        expected_s = batches * (time.monotonic() - self._validation_began_at)
        if trainer.sanity_checking:
            self._validation_s = self._validation_s or expected_s
        elif expected_s > max(_LONG_VALIDATION_S, 2 * self._validation_s):
            say(
                trainer,
                f"validation takes about {expected_s:.0f} seconds (--data.val_samples makes it shorter)",
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validation_s = time.monotonic() - self._validation_began_at

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {
            "time_elapsed_s": self.time_elapsed(),
            "validation_s": self._validation_s,
            "limits": self._limits,
            "share": [self.share.images, self.share.share, self.share.images_per_run],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._elapsed_before_s = state_dict["time_elapsed_s"]
        self._validation_s = state_dict["validation_s"]
        self._limits = state_dict["limits"]
        self.share.images, self.share.share, self.share.images_per_run = state_dict["share"]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the elapsed time from a checkpoint that was written with Lightning's Timer."""
        earlier = checkpoint.get("callbacks", {}).get("Timer")
        if earlier is not None and self.state_key not in checkpoint["callbacks"]:
            self._elapsed_before_s = earlier["time_elapsed"]["train"]


def say(trainer: Trainer, line: str) -> None:
    """Print a line to the user on rank 0, above the progress bar if there is one."""
    bar = trainer.progress_bar_callback
    (rank_zero_info if bar is None else bar.print)(line)


def _growth(trainer: Trainer) -> ProgressiveGrowing | None:
    return next((c for c in callbacks_of(trainer) if isinstance(c, ProgressiveGrowing)), None)


def _batch_size(trainer: Trainer, images_seen: int) -> int:
    """Images of the next batch, over all processes."""
    growth = _growth(trainer)
    stages = trainer.datamodule.stages if growth is None else growth.stages  # type: ignore[attr-defined]
    return int(position(stages, images_seen).stage.batch_size)


def _schedules_by_share(module: LightningModule) -> Iterator[Linear | Cosine]:
    """All schedules of the module, its submodules and its penalties that are given as shares of the run."""
    for part in (*module.modules(), *getattr(module, "penalties", [])):
        for value in vars(part).values():
            if isinstance(value, Linear | Cosine) and value.share is not None:
                yield value


def _as_max_time(seconds: float) -> str:
    """A duration in the format of `--trainer.max_time`: days:hours:minutes:seconds."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 1440:02}:{minutes // 60 % 24:02}:{minutes % 60:02}:{second:02}"
