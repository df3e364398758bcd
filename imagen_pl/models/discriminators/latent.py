"""A discriminator of an autoencoder's latents.

Axes: b batch, h w places of a latent, k heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.types import Growth, TextFeatures


class LatentDiscriminator(Discriminator):
    """Another discriminator, which reads latents where a LatentGenerator draws them.

    Growth stages count in pixels of the finished images; this translates them to sides of latents. The
    resolutions of the other discriminator, and of its feature maps, are those of latents.

    Args:
        discriminator: reads the latents; its `image_channels` are those of the autoencoder's latents.
        downsampling: side of an image divided by that of its latents. A run takes it from the autoencoder.
    """

    def __init__(self, discriminator: Discriminator, downsampling: int = 4) -> None:
        super().__init__()
        if downsampling < 1:
            raise UserError(f"LatentDiscriminator.downsampling {downsampling} must be 1 or more")
        self.discriminator, self.downsampling = discriminator, downsampling
        self.resolutions = tuple(downsampling * side for side in discriminator.resolutions)
        self.text_dim, self.final_dim = discriminator.text_dim, discriminator.final_dim
        self.image_channels, self.aspect_ratio = discriminator.image_channels, discriminator.aspect_ratio
        self.penalizable = discriminator.penalizable
        self.why_not_penalizable = discriminator.why_not_penalizable
        self.images_per_sample = discriminator.images_per_sample
        self.map_channels: Mapping[int, int] = discriminator.map_channels
        self.frozen_channels: Sequence[int] = discriminator.frozen_channels

    def blocks(self) -> dict[int, nn.Module]:
        return {self.downsampling * side: block for side, block in self.discriminator.blocks().items()}

    def extract_features(
        self, images: Float[Tensor, "b _c h w"], growth: Growth | None = None
    ) -> ImageFeatures:
        return self.discriminator.extract_features(images, self._of_latents(growth))

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Float[Tensor, "b k"]:
        return self.discriminator.logits(features, text)

    def penalized_logits(
        self, images: Float[Tensor, "b _c h w"], text: TextFeatures, growth: Growth | None = None
    ) -> Float[Tensor, "b k"]:
        return self.discriminator.penalized_logits(images, text, self._of_latents(growth))

    def _of_latents(self, growth: Growth | None) -> Growth | None:
        return None if growth is None else growth.reduced(self.downsampling)
