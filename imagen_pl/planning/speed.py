"""Times training steps: the networks, losses and optimizers of a plan in Lightning's loop, on real images."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer

from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.callbacks.run_length import RunLength
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.planning import rules
from imagen_pl.planning.data_profile import SampleRows
from imagen_pl.planning.planner import Plan, Speed
from imagen_pl.planning.recipe import model
from imagen_pl.planning.recipe_losses import penalty_interval
from imagen_pl.planning.settings import to_dict
from imagen_pl.schedules import Stage
from imagen_pl.training.precision import choose_precision
from imagen_pl.training.step_logger import peak_memory_gb

_SECONDS = 6.0  # of timed steps at full size
_WARM_UP = 2  # steps: the first ones allocate memory and choose algorithms
_EVERY = 2  # every second step has penalties, so that a few steps time both kinds
_SHORT_STEP_S = 2.0  # on a CPU the batch is made smaller if a step takes longer
_SMALLEST_BATCH = 4
_ENDLESS = 10**12  # images


def measure(plan: Plan) -> Speed:
    """Time the training steps of a plan on this machine; takes about ten seconds.

    On a CPU a slow batch is made smaller: the time per image hardly depends on the batch size.

    Raises:
        UserError: the GPU's memory is too small.
    """
    accelerator = "gpu" if plan.budget.gpus else "cpu"
    batch = _batch(plan, accelerator)
    grown = plan.stages
    gan = _build_gan(plan)
    by_resolution: dict[int, float] = {}
    try:
        for stage in reversed(grown):
            size = batch * max(1, stage.batch_size // grown[-1].batch_size)
            seconds = _SECONDS if stage is grown[-1] else _SECONDS / 6
            rate = _time(gan, plan, Stage(stage.resolution, math.inf, size), accelerator, seconds)
            by_resolution[stage.resolution] = rate
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory is too small for {plan.design.resolution} px and batches of "
            f"{plan.batch_size}: choose a smaller --resolution"
        ) from error
    memory_gb = peak_memory_gb(torch.device("cuda" if plan.budget.gpus else "cpu"))
    # The batch is split over the devices; communication between them is not measured.
    devices = max(plan.budget.gpus, 1)
    scaled = {resolution: rate * devices for resolution, rate in by_resolution.items()}
    return Speed(scaled[grown[-1].resolution], scaled, memory_gb)


def _batch(plan: Plan, accelerator: str) -> int:
    """Images per step on one device."""
    batch = max(2, plan.batch_size // max(plan.budget.gpus, 1))
    if accelerator == "gpu":
        return batch
    # The quickstart trains at about 25 images/s on two cores without bfloat16.
    expected_s = batch / 25 * rules.cost(plan.design.base, plan.design.resolution) / rules.cost(1024, 32)
    while expected_s > _SHORT_STEP_S and batch > _SMALLEST_BATCH:
        batch, expected_s = batch // 2, expected_s / 2
    return batch


def _build_gan(plan: Plan) -> TextToImageGAN:
    """The plan's model as `fit` builds it, without metrics."""
    settings = to_dict(model(plan))
    settings.pop("metrics")
    for penalty in settings["penalties"]:
        penalty["init_args"]["every"] = _EVERY
    parser = ArgumentParser()
    parser.add_class_arguments(TextToImageGAN, "model")
    torch.manual_seed(0)
    gan = parser.instantiate_classes(parser.parse_object({"model": settings})).model
    assert isinstance(gan, TextToImageGAN)
    return gan


def _time(gan: TextToImageGAN, plan: Plan, stage: Stage, accelerator: str, seconds: float) -> float:
    """Images per second of one stage on one device."""
    rows = list(plan.data.sample)
    rows *= -(-stage.batch_size // len(rows))
    timer = StepTimer(seconds)
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        precision=choose_precision(accelerator).name,  # type: ignore[arg-type]
        max_epochs=-1,
        # Schedules are shares of the run, which the timer ends long before this.
        callbacks=[ProgressiveGrowing([stage]), RunLength(max_images=_ENDLESS), timer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    sample = SampleRows(plan.data.path, rows, plan.data.source)
    trainer.fit(gan, CaptionedImages(sample, num_workers=0, val_fraction=0, epoch_kimg=1000.0, min_size=1))
    return stage.batch_size / timer.seconds_a_step(penalty_interval(plan))


class StepTimer(Callback):
    """Times the steps with and without gradient penalties, and ends training when it has timed enough.

    Args:
        seconds: how long to time steps, at least one of each kind. The first two steps count only if there is
            no time for more.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._steps: list[tuple[bool, float]] = []  # whether it had penalties, and its seconds
        self._penalized = False
        self._begin = 0.0

    def seconds_a_step(self, every: int) -> float:
        """Mean time of a step, seconds, if one step in `every` has penalties."""
        warm = self._steps[_WARM_UP:] if self._has_both(self._steps[_WARM_UP:]) else self._steps
        plain, penalized = (
            statistics.median(took for kind, took in warm if kind == wanted) for wanted in (False, True)
        )
        return plain + max(0.0, penalized - plain) / every

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, i: int) -> None:
        assert isinstance(pl_module, TextToImageGAN)
        self._penalized = (pl_module.images_seen // len(batch)) % _EVERY == 0
        self._begin = _now()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        self._steps.append((self._penalized, _now() - self._begin))
        warm, all_s = self._steps[_WARM_UP:], sum(took for _, took in self._steps)
        timed = self._has_both(warm) and sum(took for _, took in warm) >= self.seconds
        trainer.should_stop = timed or (self._has_both(self._steps) and all_s >= 2 * self.seconds)

    @staticmethod
    def _has_both(steps: list[tuple[bool, float]]) -> bool:
        return len({kind for kind, _ in steps}) == 2


def _now() -> float:
    """The time in seconds, after the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
