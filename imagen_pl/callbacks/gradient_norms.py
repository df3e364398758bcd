"""Logs how strongly each of the generator's losses pulls at the generated images."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from imagen_pl.callbacks.base import EveryKimg, check_interval, gan_of
from imagen_pl.types import EncodedBatch


class GradientNorms(EveryKimg):
    """At intervals, the norm of each weighted loss's gradient at the generated images.

    `train/gradient_g_loss` is that of the adversarial loss, `train/gradient_g_NAME` that of the loss term
    NAME: the root mean square over the images of the norm of one image's gradient, so it does not depend on
    the batch size. A loss whose norm is a hundredth of the others' has no effect; one whose norm is several
    times the others' decides alone.

        imagen-pl fit ... --trainer.callbacks+=imagen_pl.callbacks.gradient_norms.GradientNorms

    Args:
        every_kimg: how often to measure, in thousands of images seen. It takes a pass of the generator and
            of every loss.
    """

    every_kimg: float

    def __init__(self, every_kimg: float = 1.0) -> None:
        check_interval("GradientNorms.every_kimg", every_kimg)
        self.every_kimg = every_kimg
        self._batch: Any = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is logged any more."""

    def at_interval(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gan = gan_of(pl_module)
        normalization, gan.gradient_normalization = gan.gradient_normalization, None
        try:
            # Nothing here may change the training: neither random numbers nor the moving average of a norm.
            with torch.random.fork_rng(), trainer.precision_plugin.forward_context():
                batch: EncodedBatch = gan.encoded(self._batch)
                z = torch.randn(len(batch), gan.generator.latent_dim, device=gan.device)
                with torch.no_grad():
                    fake = gan.generator.for_batch(z, batch, gan.growth)
                fake = fake.detach().requires_grad_(True)
                with torch.enable_grad():
                    losses = gan.generator_losses(fake, z, batch, seed=0)
        finally:
            gan.gradient_normalization = normalization
        noted = {}
        for name, loss in losses.items():
            if not loss.requires_grad:
                continue  # it reads neither the images nor the discriminator's features of them
            (gradient,) = torch.autograd.grad(loss.mean(), fake, retain_graph=True, allow_unused=True)
            if gradient is not None:
                of_image = len(batch) * gradient.float().flatten(1).norm(dim=1)
                noted[f"gradient_{name}"] = of_image.square().mean().sqrt()
        gan.step_logger.note(noted)
