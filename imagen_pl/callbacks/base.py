"""Helpers that several callbacks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN


def gan_of(pl_module: LightningModule) -> TextToImageGAN:
    """The module passed to a callback, typed as TextToImageGAN."""
    assert isinstance(pl_module, TextToImageGAN)
    return pl_module


def is_dry_run(trainer: Trainer) -> bool:
    """Whether the run is Lightning's fast_dev_run, which writes nothing to disk."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """All callbacks of a run."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


class EveryKimg(Callback, ABC):
    """A callback that does something every so many thousand images, and once more at the end of training.

    Subclasses set `every_kimg` and write `at_interval`. A dry run does nothing.

    Attributes:
        every_kimg: the interval, thousands of images; None waits for the end of training.
    """

    every_kimg: float | None = None
    _batch_began_at = 0  # images seen
    _acted_at: int | None = None  # images seen

    @abstractmethod
    def at_interval(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What the callback does."""

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do it now, whatever the interval says."""
        self._acted_at = gan_of(pl_module).images_seen
        if not is_dry_run(trainer):
            self.at_interval(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch_began_at = gan_of(pl_module).images_seen

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every_kimg is None:
            return
        every, now = self.every_kimg * 1000, gan_of(pl_module).images_seen
        if now // every > self._batch_began_at // every:  # the batch passed a multiple of the interval
            self.act(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._acted_at != gan_of(pl_module).images_seen:
            self.act(trainer, pl_module)


def check_interval(setting: str, every_kimg: float) -> None:
    """Raise UserError if an interval, the value of a setting, is not more than 0."""
    if every_kimg <= 0:
        raise UserError(f"{setting} {every_kimg} must be more than 0")
