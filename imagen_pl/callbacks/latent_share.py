"""Logs how much of the generated images' variety comes from the latent, and warns if it is almost none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from imagen_pl.callbacks.base import EveryKimg, gan_of
from imagen_pl.metrics.caption_diversity import latent_share

_LOW = 0.05  # below it, pictures of one caption look alike
_PATIENCE = 2  # low values in a row before the warning
_TRUSTED = 10_000  # images seen before the warning


class LatentShare(EveryKimg):
    """Samples several images of some captions at intervals, and logs `train/latent_share`, 0 to 1.

    It is the share of the pixels' variance that lies within captions: 0 if all images of a caption are the
    same, 1 if the caption makes no difference. If it stays low although several training images have a
    caption in common, one warning is printed. Where each caption describes one image, a low share is right.

    Args:
        every_kimg: how often to measure, in thousands of images seen.
        captions: number of captions, spread over the training set; those that several images have, if any.
        images: images of each caption.
        say: prints a line to the user; None prints above the progress bar where there is one.
    """

    every_kimg: float

    def __init__(
        self,
        every_kimg: float = 5.0,
        captions: int = 16,
        images: int = 4,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.every_kimg, self.captions, self.images, self.say = every_kimg, captions, images, say
        self._chosen: list[str] = []
        self._is_shared = False
        self._low = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if data is None or not hasattr(data, "shared_captions") or gan_of(pl_module).generator.reads_images:
            return
        shared = data.shared_captions(self.images, self.captions)
        self._is_shared = len(shared) > 1
        self._chosen = shared if self._is_shared else data.example_captions(self.captions)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is logged any more."""

    @torch.no_grad()
    def at_interval(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(self._chosen) < 2 or not trainer.is_global_zero:
            return
        gan = gan_of(pl_module)
        images = gan.sample([caption for caption in self._chosen for _ in range(self.images)], seed=0)
        share = latent_share(images.flatten(1).unflatten(0, (len(self._chosen), self.images)))
        gan.step_logger.note({"latent_share": torch.tensor(share)})
        self._low = self._low + 1 if share < _LOW and gan.images_seen >= _TRUSTED else 0
        if self._is_shared and self._low == _PATIENCE:
            bar = trainer.progress_bar_callback
            (self.say or (print if bar is None else bar.print))(warning(share))


def warning(share: float) -> str:
    return (
        "Warning: images of one caption look alike whatever the seed: the latent accounts for "
        f"{share:.1%} of their variance (train/latent_share). To vary them: set "
        "data.pictures_per_caption and the discriminator's minibatch_stddev to 4; lower the generator_weight "
        "of contrastive and matching losses; raise the weight of R1 and R2. See docs/tuning.md, "
        '"Why does everything look alike?".'
    )
