"""Saves the last and the best checkpoint of a run."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer

from imagen_pl.callbacks.base import EveryKimg, check_interval, gan_of, is_dry_run
from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.training.private_api import CheckpointSaver


class KeepCheckpoints(EveryKimg, CheckpointSaver):
    """Saves `checkpoints/last.ckpt` and, by the monitored score, `checkpoints/best.ckpt`.

    Scores of different resolutions cannot be compared, so the search for the best restarts at each
    resolution. last.ckpt is written after every validation, at the end, and every `every_kimg`.

    Args:
        monitor: score that decides which is best, for example val/fd_efficientnet_lite0 or val/fid; None
            keeps only last.ckpt.
        mode: "min" if lower scores are better, as for Fréchet distances; "max" if higher ones are.
        every_kimg: also write last.ckpt this often, in thousands of images; None turns this off.
    """

    def __init__(
        self, monitor: str | None = None, mode: Literal["min", "max"] = "min", every_kimg: float | None = None
    ) -> None:
        if every_kimg is not None:
            check_interval("checkpoint.every_kimg", every_kimg)
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1 if monitor else 0,
            save_last=True,
            # Writes are atomic, so a new best may replace the old one.
            enable_version_counter=False,
        )
        self.every_kimg = every_kimg
        self._resolution: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = self.dirpath or str(Path(trainer.default_root_dir).resolve() / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_before_training(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._check_before_training(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: checkpoints follow the images seen, not epochs."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or is_dry_run(trainer):
            return
        if self.monitor is not None:
            self._forget_other_resolutions(gan_of(pl_module).growth.resolution)
            # A score that is not available was reported at the start.
            if self.monitor not in gan_of(pl_module).validation.unavailable:
                scores = self.scores(trainer)
                if self.monitor not in scores:
                    self.act(trainer, pl_module)  # an error must not lose what was trained
                self._check_monitored(scores)
                self.save_if_best(trainer)
        self.act(trainer, pl_module)

    def at_interval(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save_last_now(trainer)

    def _check_before_training(self, pl_module: LightningModule) -> None:
        """Validation may come only at the end; a subclass's own scores are known only then."""
        validation = gan_of(pl_module).validation
        scores_are_known = type(pl_module).validation_step is TextToImageGAN.validation_step
        if self.monitor is not None and scores_are_known and self.monitor not in validation.unavailable:
            self._check_monitored({f"val/{name}" for metric in validation.metrics for name in metric.scores})

    def _check_monitored(self, scores: Collection[str]) -> None:
        if self.monitor not in scores:
            known = sorted(name for name in scores if name.startswith("val/"))
            raise UserError(
                f"checkpoint.monitor {self.monitor} is not among the scores of validation: "
                f"{', '.join(known) or 'there are none, so set it to null or name metrics in model.metrics'}"
            )

    def _forget_other_resolutions(self, resolution: int) -> None:
        """Let the first score of a new resolution count as the best."""
        if self._resolution not in (None, resolution):
            worst = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
            self.best_k_models = dict.fromkeys(self.best_k_models, worst)
            self.best_model_score = self.kth_value = worst
        self._resolution = resolution

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "resolution": self._resolution}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["dirpath"] != self.dirpath:
            return  # the checkpoint of another run, whose best does not count here
        super().load_state_dict(state_dict)
        self._resolution = state_dict["resolution"]
        if not os.path.isfile(self.best_model_path):
            self.best_k_models, self.best_model_path, self.best_model_score = {}, "", None
