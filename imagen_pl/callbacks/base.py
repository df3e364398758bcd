"""What the callbacks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule

if TYPE_CHECKING:
    from imagen_pl.system import TextToImageGAN


def system_of(pl_module: LightningModule) -> TextToImageGAN:
    """The module as what it is; imported late, since the system is above the callbacks."""
    from imagen_pl.system import TextToImageGAN

    assert isinstance(pl_module, TextToImageGAN)
    return pl_module
