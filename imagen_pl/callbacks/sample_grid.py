"""Sample images of fixed captions during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from imagen_pl.callbacks.base import EveryKimg, check_interval, gan_of, is_dry_run
from imagen_pl.callbacks.picture_logging import log_pictures, log_table
from imagen_pl.callbacks.stage_table import StageTable
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid, to_pil, to_uint8
from imagen_pl.imaging.transparency import on_white
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.models.generators.base import ImageToImageGenerator
from imagen_pl.schedules import position
from imagen_pl.storage.atomic_files import atomic_write


class SampleGrid(EveryKimg):
    """Samples the same captions with the same latents at intervals, to show the progress of training.

    The images come from the generator's moving average, at the current resolution, transparent ones on white.
    They are saved to
    `samples/000123kimg.png` in the run's folder, and logged to W&B, TensorBoard and MLflow if those are in
    use. In a run with several stages, `samples/stages/table.png` shows each caption at the end of every
    stage.

    Args:
        captions: the captions, for a generator that draws from captions alone; one that is listed twice is
            sampled from two latents. None takes sixteen of the data set, half from the training set and half
            held-out; of a stream, only held-out ones. An empty list switches the grid off.
        every_kimg: how often to sample, in thousands of images seen; also once at the end.
        seed: seed of the latents.
        columns: images a row. A generator that reads images, as an Upsampler, shows what it makes of so many
            held-out ones.
    """

    every_kimg: float

    def __init__(
        self,
        captions: list[str] | None = None,
        every_kimg: float = 50.0,
        seed: int = 0,
        columns: int = 8,
    ) -> None:
        check_interval("samples.every_kimg", every_kimg)
        if columns < 1:
            raise UserError(f"samples.columns {columns} must be 1 or more")
        self.captions, self.every_kimg = captions, every_kimg
        self.seed, self.columns = seed, columns

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        if self.captions is None and data is not None and hasattr(data, "captions_to_watch"):
            self.captions = data.captions_to_watch()
        gan_of(pl_module).text_encoder.check(self.captions or [])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        state = gan_of(pl_module).run_state
        if len(state.stages) > 1 and state.position is not None:
            following = position(state.stages, state.images_seen)
            if following.index != state.position.index:
                self._record_stage(trainer, gan_of(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if len(gan_of(pl_module).run_state.stages) > 1:
            self._record_stage(trainer, gan_of(pl_module))

    def at_interval(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.captions or not trainer.is_global_zero:
            return
        gan = gan_of(pl_module)
        pictures, captions = self._sample(trainer, gan)
        sheet = labelled_grid(pictures, captions, self.columns)
        folder = samples_folder(trainer)
        with atomic_write(folder / f"{self._kimg(gan.images_seen)}kimg.png") as file:
            sheet.save(file, "PNG")
        for logger in trainer.loggers:
            log_pictures(logger, "samples", pictures, captions, sheet, gan.images_seen)

    def _record_stage(self, trainer: Trainer, gan: TextToImageGAN) -> None:
        """Add samples of the stage that ends to the table of stages."""
        stage = gan.run_state.position
        if not self.captions or stage is None or not trainer.is_global_zero or is_dry_run(trainer):
            return
        pictures, captions = self._sample(trainer, gan)
        table = StageTable(samples_folder(trainer) / "stages")
        table.record(stage.index, gan.growth.resolution, pictures)
        columns = table.columns(len(captions))
        sheet = table.sheet(captions, columns)
        for logger in trainer.loggers:
            log_table(logger, "samples_by_stage", captions, columns, sheet, gan.images_seen)

    def _sample(self, trainer: Trainer, gan: TextToImageGAN) -> tuple[list[Image.Image], list[str]]:
        """Samples at the current resolution, on white, and the label of each."""
        generator = gan.ema.generator
        if isinstance(generator, ImageToImageGenerator):
            images, captions = self._rows(trainer, gan, generator)
        else:
            images, captions = gan.sample(self.captions or [], self.seed), self.captions or []
        return to_pil(on_white(to_uint8(images))), captions

    @torch.no_grad()
    def _rows(
        self, trainer: Trainer, gan: TextToImageGAN, generator: ImageToImageGenerator
    ) -> tuple[Tensor, list[str]]:
        """What a generator makes of `columns` held-out images, in rows, and the labels."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batch = gan.encoded(data.batch_to_watch(self.columns).to(gan.device))
        z = gan.latents_of(range(len(batch)), self.seed)
        rows = generator.rows_to_show(z, batch, gan.growth)
        labels = [f"{label}: {caption}" for label in rows for caption in batch.captions]
        return torch.cat(list(rows.values())), labels

    def _kimg(self, images_seen: int) -> str:
        """For example 000123, or 000000.5 if grids are drawn more often than every thousand images."""
        return f"{images_seen // 1000:06d}" if self.every_kimg >= 1 else f"{images_seen / 1000:08.1f}"


def samples_folder(trainer: Trainer) -> Path:
    """The folder `samples` of the run; created if it does not exist."""
    folder = Path(trainer.default_root_dir) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
