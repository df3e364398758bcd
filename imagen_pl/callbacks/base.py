"""Helpers that several callbacks share."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

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
