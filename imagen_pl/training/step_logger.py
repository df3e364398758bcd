"""What a run tells: losses, margins, norms and speed, all on the clock of images."""

from __future__ import annotations

import sys
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from imagen_pl.training.manual_optimization import ManualOptimization


def peak_memory_gb(device: torch.device) -> float:
    """The most that was in use so far, GiB: a GPU's own memory, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return float("nan")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class StepLogger:
    """Collects numbers during a step and hands them to the loggers now and then.

    Numbers stay on the device until they are due, so that noting them costs no synchronisation.

    Attributes:
        status: the newest numbers, for the progress bar.
        stage: index of the growth stage.
        learns: the blocks that learn now, in a few letters; empty while all do.
        standing: further numbers to log each time.
    """

    def __init__(self) -> None:
        self.status: dict[str, float] = {}
        self.stage = 0
        self.learns = ""
        self.standing: dict[str, float] = {}
        self._notes: dict[str, Float[Tensor, ""]] = {}
        self._timed_from: tuple[int, float] | None = None

    def note(self, numbers: dict[str, Float[Tensor, ""]]) -> None:
        """Keep the newest value of each."""
        self._notes.update({name: value.detach() for name, value in numbers.items()})

    def note_logits(self, real: Float[Tensor, "b k"], fake: Float[Tensor, "b k"]) -> None:
        """The discriminator's margin: how far it holds reals above fakes."""
        real, fake = real.detach().mean(), fake.detach().mean()
        self.note({"real_logits": real, "fake_logits": fake, "d_margin": real - fake})

    def is_due(self, system: ManualOptimization) -> bool:
        """Whether this batch's numbers go to the loggers."""
        every = max(system.trainer.log_every_n_steps, 1)  # type: ignore[attr-defined]
        return system.trainer.fit_loop.epoch_loop.total_batch_idx % every == 0

    def report(self, system: ManualOptimization, batch_size: int) -> None:
        """Hand over what was noted; call it after the clock has moved."""
        if self._timed_from is None:  # the first batch warms up and is not timed
            self._timed_from = (system.images_seen, perf_counter())
        if not self.is_due(system):
            return
        numbers = {f"train/{name}": float(value) for name, value in self._notes.items()}
        numbers |= {
            "growth/stage": self.stage,
            "growth/resolution": system.growth.resolution,
            "growth/fade": system.growth.fade,
        }
        numbers |= self.standing
        numbers |= dict(zip(("train/d_lr", "train/g_lr"), system.learning_rates, strict=False))
        if isinstance(probability := getattr(getattr(system, "augment", None), "probability", None), Tensor):
            numbers["train/augment_probability"] = float(probability)
        seen, since = self._timed_from
        if system.images_seen > seen:
            numbers["train/images_per_second"] = (system.images_seen - seen) / (perf_counter() - since)
            self._timed_from = (system.images_seen, perf_counter())
            numbers |= {"train/peak_memory_gb": peak_memory_gb(system.device)}
        self._log(system, numbers)

    def report_scores(self, system: ManualOptimization, scores: dict[str, float]) -> None:
        """Scores of a validation: to the loggers, and to callbacks that watch them."""
        numbers = {f"val/{name}": value for name, value in scores.items()}
        self._log(system, numbers)
        for name, value in numbers.items():
            # Every process holds the same value already.
            system.log(name, torch.tensor(value, dtype=torch.float32), logger=False, rank_zero_only=False)
        self._timed_from = (system.images_seen, perf_counter())

    def _log(self, system: ManualOptimization, numbers: dict[str, float]) -> None:
        self.status |= numbers
        for logger in system.loggers:
            logger.log_metrics({**numbers, "images_seen": system.images_seen}, step=system.images_seen)
