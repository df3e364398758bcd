"""Sample images of fixed captions during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from imagen_pl.callbacks.base import gan_of, is_dry_run
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid, to_pil, to_uint8


class SampleGrid(Callback):
    """Samples the same captions with the same latents at intervals, to show the progress of training.

    The images come from the generator's moving average, at the current resolution. They are saved to
    `samples/000123kimg.png` in the run's folder, and logged to W&B and TensorBoard if those are in use.

    Args:
        captions: the captions; one that is listed twice is sampled from two latents. None takes sixteen of
            the data set, half from the training set and half held-out; of a stream, only held-out ones. An
            empty list switches the grid off.
        every_kimg: how often to sample, in thousands of images seen; also once at the end.
        seed: seed of the latents.
        columns: images a row.
    """

    def __init__(
        self,
        captions: list[str] | None = None,
        every_kimg: float = 50.0,
        seed: int = 0,
        columns: int = 8,
    ) -> None:
        if every_kimg <= 0:
            raise UserError(f"samples.every_kimg {every_kimg} must be more than 0")
        if columns < 1:
            raise UserError(f"samples.columns {columns} must be 1 or more")
        self.captions, self.every_kimg = captions, every_kimg
        self.seed, self.columns = seed, columns
        self._clock = 0
        self._drawn_at: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        if self.captions is None and data is not None and hasattr(data, "captions_to_watch"):
            self.captions = data.captions_to_watch()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._clock = gan_of(pl_module).images_seen

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every, now = self.every_kimg * 1000, gan_of(pl_module).images_seen
        if now // every > self._clock // every:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._drawn_at != gan_of(pl_module).images_seen:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gan = gan_of(pl_module)
        self._drawn_at = gan.images_seen
        if not self.captions or not trainer.is_global_zero or is_dry_run(trainer):
            return
        images = gan.sample(self.captions, self.seed)
        pictures = to_pil(to_uint8(images))
        sheet = labelled_grid(pictures, self.captions, self.columns)
        folder = Path(trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / f"{self._kimg(gan.images_seen)}kimg.png")
        for logger in trainer.loggers:
            self._log(logger, pictures, self.captions, sheet, gan.images_seen)

    def _kimg(self, images_seen: int) -> str:
        """For example 000123, or 000000.5 if grids are drawn more often than every thousand images."""
        return f"{images_seen // 1000:06d}" if self.every_kimg >= 1 else f"{images_seen / 1000:08.1f}"

    def _log(
        self,
        logger: Logger,
        pictures: list[Image.Image],
        captions: list[str],
        sheet: Image.Image,
        images_seen: int,
    ) -> None:
        if isinstance(logger, WandbLogger):
            import wandb

            images = [wandb.Image(p, caption=c) for p, c in zip(pictures, captions, strict=True)]
            logger.experiment.log({"samples": images, "images_seen": images_seen})
        elif isinstance(logger, TensorBoardLogger):
            import numpy as np

            logger.experiment.add_image("samples", np.asarray(sheet), images_seen, dataformats="HWC")
