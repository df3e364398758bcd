"""Generator losses that keep the images of one caption different from each other.

They act on the generator alone: what differs need not look real. Stronger gradient penalties often help more
(docs/tuning.md, "Why does everything look alike?").

Axes: b batch, n images, z latent, f features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import (
    LossInputs,
    LossTerm,
    PerSample,
    Step,
    check_draws_captions,
    check_share,
    check_size,
    mean_of_each,
)
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.generators.base import Generator
from imagen_pl.schedules import Schedule


class ModeSeeking(LossTerm):
    """Two latents of one caption should give two images (MSGAN, arXiv:1903.05628, eq. 4, as its inverse).

    |z1 - z2| / (|G(z1, t) - G(z2, t)| + 1e-5)    mean absolute differences

    Args:
        generator_weight: factor in the generator's loss: a number, or a schedule of images seen.
        share: share of a batch that is generated a second time, above 0 to 1.
        from_resolution: resolution, px, below which the term is skipped.
    """

    name = "mode_seeking"

    def __init__(
        self, generator_weight: float | Schedule = 0.1, share: float = 0.5, from_resolution: int = 4
    ) -> None:
        check_share(self, share)
        super().__init__(0.0, generator_weight, from_resolution)
        self.share = share

    def check_generator(self, generator: Generator) -> None:
        check_draws_captions(self, generator)

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        if inputs.generator is None or inputs.latents is None:
            raise ValueError("ModeSeeking generates images: it needs inputs.generator and inputs.latents")
        n = max(1, round(self.share * len(inputs.images)))
        z, other = inputs.latents[:n], torch.randn_like(inputs.latents[:n])
        again = inputs.generator(other, inputs.text[:n], inputs.growth)
        difference = mean_of_each((inputs.images[:n] - again).abs())
        self.note("difference", difference.mean())
        return mean_of_each((z - other).abs()) / (difference + 1e-5)


class LatentContrastive(LossTerm):
    """The latent of an image should be recognisable from it, among those of the batch (InfoNCE).

    A contrastive form of InfoGAN's latent regression (arXiv:1606.03657), as DivCo contrasts latents
    (arXiv:2103.07893). The two projections are trained with the generator.

    Args:
        image_dim: size of the discriminator's `final_dim`.
        latent_dim: size of the generator's latent.
        embed_dim: size of the joint embedding space.
        temperature: of the similarities.
        generator_weight: factor in the generator's loss: a number, or a schedule of images seen.
    """

    name = "latent_contrastive"
    reads_pixels = False
    trained_in: Step = "generator"

    def __init__(
        self,
        image_dim: int = 256,
        latent_dim: int = 64,
        embed_dim: int = 64,
        temperature: float = 0.1,
        generator_weight: float | Schedule = 0.1,
    ) -> None:
        super().__init__(0.0, generator_weight)
        self.image = nn.Linear(image_dim, embed_dim)
        self.latent = nn.Linear(latent_dim, embed_dim)
        self.temperature = temperature

    def check(self, discriminator: Discriminator) -> None:
        image_dim = self.image.in_features
        check_size(self, "image_dim", image_dim, discriminator.final_dim, "the discriminator's final_dim")

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        if inputs.latents is None:
            raise ValueError("LatentContrastive compares latents: it needs inputs.latents")
        images: Float[Tensor, "b f"] = F.normalize(self.image(inputs.features.final).float(), dim=1)
        latents: Float[Tensor, "b f"] = F.normalize(self.latent(inputs.latents).float(), dim=1)
        similarity = images @ latents.T / self.temperature
        own = torch.arange(len(similarity), device=similarity.device)
        self.note("accuracy", (similarity.argmax(1) == own).float().mean())
        return F.cross_entropy(similarity, own, reduction="none")
