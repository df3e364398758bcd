"""Trains a standalone captioner on real image-caption pairs, without a GAN.

Axes: b batch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.progress import print_above_bars, progress_bar
from imagen_pl.errors import TrainingStopped, UserError
from imagen_pl.models.augment import Augment
from imagen_pl.models.captioner.model import Captioner
from imagen_pl.models.captioner.weights import save_weights
from imagen_pl.models.latents import mix_seed
from imagen_pl.schedules import RunState, Schedule
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.storage.model_paths import DESCRIPTION
from imagen_pl.training.clocked_module import ClockedModule
from imagen_pl.types import CaptionedBatch, Growth


class CaptionerTraining(ClockedModule):
    """Trains a captioner on image-caption pairs of one resolution, and validates it on held-out pairs.

    Args:
        captioner: the network to train.
        optimizer: makes the captioner's optimizer, for example `torch.optim.AdamW`.
        kimg: length of the training, thousands of images.
        learning_rate_schedule: factor on the learning rate by images seen; None keeps it constant.
        augment: augmentation of the training images, for example NoisyViews; None turns it off.
        seed: seed of dropout and of `augment`; together with the clock it determines every random number.

    Attributes:
        images_seen: the clock, images over all processes.
        scores: scores of the last validation: val/caption_ce, the cross-entropy of held-out captions in
            nats a token, and val/caption_ce_shuffled, the same with the captions of other images.
    """

    best: Float[Tensor, ""]

    def __init__(
        self,
        captioner: Captioner,
        optimizer: OptimizerCallable,
        kimg: float = 100.0,
        learning_rate_schedule: Schedule | None = None,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kimg <= 0:
            raise UserError(f"model.kimg {kimg} must be more than 0")
        if captioner.features.needs_discriminator:
            raise UserError(
                "model.captioner: a captioner trained on its own has no discriminator to take features from: "
                "leave features out, or use BackboneFeatures"
            )
        self.captioner, self.optimizer, self.kimg = captioner, optimizer, kimg
        self.learning_rate_schedule, self.augment, self.seed = learning_rate_schedule, augment, seed
        self.register_buffer("best", torch.tensor(torch.inf))
        self.run_state = RunState(Growth(4))  # replaced by the data module's growth in setup()
        self.scores: dict[str, float] = {}
        self._sums = torch.zeros(3)

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, CaptionedImages):
            self.run_state.growth = data.run_state.growth
            data.follow(self.run_state)
            self.captioner.prepare(data.some_captions)

    def training_step(self, batch: CaptionedBatch, batch_idx: int) -> Float[Tensor, ""]:
        torch.manual_seed(mix_seed(self.seed, self.images_seen, self.global_rank))
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self._lr * self._factor()
        losses = self.captioner.cross_entropy(self._image_features(batch), batch.captions)
        loss = losses.sum() / (losses > 0).sum().clamp(min=1)  # dropped captions have no loss
        if not torch.isfinite(loss):
            raise TrainingStopped(
                f"caption_ce became {loss.item()} at {self.images_seen} images seen: lower the lr"
            )
        self._log_now({"train/caption_ce": loss.detach()}, batch_idx)
        # Updated here: callbacks that save a checkpoint at the batch's end run before this module's own hook.
        self.images_seen += len(batch) * self.trainer.world_size
        return loss

    def on_train_batch_end(self, outputs: Any, batch: CaptionedBatch, batch_idx: int) -> None:
        if self.images_seen >= self.kimg * 1000:
            self.trainer.should_stop = True

    def on_validation_epoch_start(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)

    def validation_step(self, batch: CaptionedBatch, batch_idx: int) -> None:
        memory = self._image_features(batch)
        own = self.captioner.cross_entropy(memory, batch.captions)
        # Half a batch away, since neighbouring rows may show the same thing.
        other = self.captioner.cross_entropy(memory.roll(len(batch) // 2, 0), batch.captions)
        self._sums += torch.tensor([own.sum(), other.sum(), (own > 0).sum()], dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        sums = self.trainer.strategy.reduce(self._sums.float().to(self.device), reduce_op="sum")
        own, shuffled = (sums[:2] / sums[2].clamp(min=1)).tolist()
        self.scores = {"val/caption_ce": own, "val/caption_ce_shuffled": shuffled}
        if not self.trainer.sanity_checking:
            self._log_now(self.scores)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.optimizer(self.parameters())
        self._lr = optimizer.param_groups[0]["lr"]
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.images_seen = checkpoint["images_seen"]

    def _image_features(self, batch: CaptionedBatch) -> Float[Tensor, "b m d"]:
        images = batch.images.float() / 127.5 - 1
        if self.augment is not None and self.training:
            images = self.augment(images)
        return self.captioner.extract_features(images)

    def _factor(self) -> float:
        return 1.0 if self.learning_rate_schedule is None else self.learning_rate_schedule(self.images_seen)

    def _log_now(self, numbers: dict[str, Any], batch_idx: int = 0) -> None:
        if batch_idx % max(self.trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
            for logger in self.loggers:
                logger.log_metrics(
                    {
                        **{name: float(value) for name, value in numbers.items()},
                        "images_seen": self.images_seen,
                    },
                    step=self.images_seen,
                )


class KeepCaptioner(Callback):
    """Saves the captioner whenever its validation score is the best so far.

    Args:
        folder: where captioner.safetensors and config.json go.
        description: the settings from which the captioner can be built again.
    """

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder, self.description = folder, description

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, CaptionerTraining)
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        score = pl_module.scores["val/caption_ce"]
        if score < float(pl_module.best):
            pl_module.best.fill_(score)
            self.write(pl_module)

    def write(self, training: CaptionerTraining) -> None:
        """Save the captioner with its current weights."""
        if training.trainer.is_global_zero:
            save_weights(training.captioner, self.folder)
            description = {**self.description, "images_seen": training.images_seen, **training.scores}
            with atomic_write(self.folder / DESCRIPTION) as file:
                file.write((json.dumps(description, indent=2) + "\n").encode())


class CaptionerProgress(Callback):
    """Shows a progress bar of images, and prints a line for each validation."""

    _bar: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, CaptionerTraining)
        self._bar = progress_bar(
            total=round(pl_module.kimg * 1000),
            initial=pl_module.images_seen,
            shown=trainer.is_global_zero,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, CaptionerTraining)
        self._bar.update(pl_module.images_seen - self._bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, CaptionerTraining)
        if trainer.is_global_zero and not trainer.sanity_checking:
            scores = "  ".join(f"{name} {value:.3f}" for name, value in pl_module.scores.items())
            print_above_bars(f"{pl_module.images_seen / 1000:.1f} kimg  {scores}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
