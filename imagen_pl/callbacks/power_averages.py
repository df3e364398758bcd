"""Snapshots of averages of the generator, from which an average of any length can be made after training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from imagen_pl.callbacks.base import EveryKimg, check_interval, gan_of, is_dry_run
from imagen_pl.errors import UserError
from imagen_pl.training.post_hoc_ema import FOLDER, LENGTHS, Snapshot, exponent, snapshots_of, write_snapshot


class PowerAverages(EveryKimg):
    """Keeps two power function averages of the generator (EDM2, arXiv:2312.02696, equation 2).

    Their snapshots, in the run's folder `averages`, are what `imagen-pl export RUN --to safetensors
    --ema_length 0.1` makes an average of any length from. A snapshot takes two bytes a parameter, and a
    checkpoint four more for each average.

        imagen-pl fit ... --trainer.callbacks+=imagen_pl.callbacks.power_averages.PowerAverages

    Args:
        every_kimg: a snapshot of both averages after each of so many thousand images, and one at the end.
        lengths: standard deviations of the averages' weights, as shares of the images seen, 0 to 0.289.
    """

    def __init__(self, every_kimg: float = 5.0, lengths: Sequence[float] = LENGTHS) -> None:
        check_interval("PowerAverages.every_kimg", every_kimg)
        if len(set(lengths)) < 2:
            raise UserError(
                f"PowerAverages.lengths {list(lengths)} must be two or more different ones: one alone gives "
                "no other length"
            )
        self.every_kimg = every_kimg
        self.exponents = {length: exponent(length) for length in lengths}
        self.averages: dict[float, dict[str, Tensor]] = {}
        self._images = 0  # images seen after the last step that was averaged

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self.averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.averages = state_dict["averages"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move loaded averages to the device, and delete snapshots that are later than the checkpoint.

        Raises:
            UserError: the run was trained until here without these averages.
        """
        gan = gan_of(pl_module)
        if is_dry_run(trainer):
            return
        self._images = gan.images_seen
        if missing := [length for length in self.exponents if self._images and length not in self.averages]:
            raise UserError(
                f"PowerAverages.lengths {', '.join(f'{each:g}' for each in missing)}: the checkpoint has no "
                "such averages, and they would lack what was trained before. Resume with the callback as it "
                "was, or start a new run"
            )
        self.averages = {
            length: {name: weights.to(pl_module.device) for name, weights in found.items()}
            for length, found in self.averages.items()
            if length in self.exponents
        }
        if trainer.is_global_zero:
            folder = self._folder(trainer)
            for snapshot in snapshots_of(folder):
                if snapshot.images > gan.images_seen:
                    snapshot.file(folder).unlink()

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        gan = gan_of(pl_module)
        if is_dry_run(trainer):
            return
        current = dict(gan.generator.named_parameters())
        step, self._images = gan.images_seen - self._images, gan.images_seen
        for length, power in self.exponents.items():
            if length not in self.averages:
                self.averages[length] = {name: weights.detach().clone() for name, weights in current.items()}
            keep = (1 - step / gan.images_seen) ** (power + 1)
            torch._foreach_lerp_(list(self.averages[length].values()), list(current.values()), 1 - keep)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def at_interval(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self._images:
            for length, weights in self.averages.items():
                write_snapshot(self._folder(trainer), Snapshot(self._images, length), weights)

    @staticmethod
    def _folder(trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / FOLDER
