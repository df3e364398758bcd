"""What each step logs: losses, logits, gradient norms and speed, by images seen."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from time import perf_counter

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from imagen_pl.schedules import RunState
from imagen_pl.training.logger_faults import survive_tracker


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory so far, GiB: on the GPU, or else of this process; NaN on Windows without a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return float("nan")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class StepLogger:
    """Collects the values of a step and logs them every `log_every_n_steps` batches.

    Values stay on the device until they are logged, so that collecting them needs no synchronisation.

    Attributes:
        status: the latest values, for the progress bar.
        trained_blocks: the blocks that are being trained, abbreviated; empty while all are.
        extra: further values to log each time.
    """

    def __init__(self) -> None:
        self.status: dict[str, float] = {}
        self.trained_blocks = ""
        self.extra: dict[str, float] = {}
        self._notes: dict[str, Float[Tensor, ""]] = {}
        self._timed_from: tuple[int, float] | None = None

    def note(self, numbers: dict[str, Float[Tensor, ""]]) -> None:
        """Store values to log; a new value replaces the earlier one of the same name."""
        self._notes.update({name: value.detach() for name, value in numbers.items()})

    def note_logits(self, real: Float[Tensor, "b k"], fake: Float[Tensor, "b k"]) -> None:
        """Store the mean logits, and the margin between real and generated images."""
        real, fake = real.detach().mean(), fake.detach().mean()
        self.note({"real_logits": real, "fake_logits": fake, "d_margin": real - fake})

    def is_due(self, trainer: Trainer) -> bool:
        """Whether this batch's values go to the loggers."""
        every = max(trainer.log_every_n_steps, 1)  # type: ignore[attr-defined]
        return trainer.fit_loop.epoch_loop.total_batch_idx % every == 0

    def report(self, module: LightningModule, state: RunState, numbers: Mapping[str, float]) -> None:
        """Log the values stored during the step; call it after the clock is updated.

        Args:
            module: the module that has the loggers and the device.
            state: the clock and the growth.
            numbers: further values, such as learning rates.
        """
        if self._timed_from is None:  # the first batch warms up and is not timed
            self._timed_from = (state.images_seen, perf_counter())
        if not self.is_due(module.trainer):
            return
        logged = {f"train/{name}": float(value) for name, value in self._notes.items()}
        logged |= {
            "growth/stage": 0 if state.position is None else state.position.index,
            "growth/resolution": state.growth.resolution,
            "growth/fade": state.growth.fade,
        }
        logged |= {**self.extra, **numbers}
        seen, since = self._timed_from
        if state.images_seen > seen:
            logged["train/images_per_second"] = (state.images_seen - seen) / (perf_counter() - since)
            self._timed_from = (state.images_seen, perf_counter())
            logged |= {"train/peak_memory_gb": peak_memory_gb(module.device)}
        self._log(module, state, logged)

    def report_scores(self, module: LightningModule, state: RunState, scores: Mapping[str, float]) -> None:
        """Log validation scores, and pass them to callbacks that monitor them."""
        numbers = {f"val/{name}": value for name, value in scores.items()}
        self._log(module, state, numbers)
        for name, value in numbers.items():
            # Every process holds the same value already.
            module.log(name, torch.tensor(value, dtype=torch.float32), logger=False, rank_zero_only=False)
        self._timed_from = (state.images_seen, perf_counter())

    def _log(self, module: LightningModule, state: RunState, numbers: dict[str, float]) -> None:
        self.status |= numbers
        for logger in module.loggers:
            with survive_tracker(logger):
                logger.log_metrics({**numbers, "images_seen": state.images_seen}, step=state.images_seen)
