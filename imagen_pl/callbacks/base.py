"""What the callbacks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from imagen_pl.lightning_module import TextToImageGAN


def system_of(pl_module: LightningModule) -> TextToImageGAN:
    """The module as what it is; imported late, since the system is above the callbacks."""
    from imagen_pl.lightning_module import TextToImageGAN

    assert isinstance(pl_module, TextToImageGAN)
    return pl_module


def is_dry_run(trainer: Trainer) -> bool:
    """Whether the run is Lightning's fast_dev_run, which leaves nothing on the disk."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """All callbacks of a run."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks
