"""R3GAN's discriminator (arXiv:2501.05441), here with captions."""

from __future__ import annotations

import itertools
import math

from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.resnext import Resample, ResNeXtBlock
from imagen_pl.models.layers.widths import check_channels
from imagen_pl.types import Growth, TextFeatures, width_of


class R3GANDiscriminator(Discriminator):
    """The generator's mirror image.

    The caption enters by projection, <V text, x> / sqrt(f) (arXiv:1802.05637, eq. 3).

    Args:
        channels: feature maps at each resolution, smallest first, each twice the one before. The last key is
            the height of the images.
        text_dim: size of the text encoder's vectors.
        final_dim: f, size of the vector that summarises an image.
        blocks: residual blocks at each resolution.
        image_channels: of the images: 3 for RGB, 4 for RGBA, or those of an autoencoder's latents.
        aspect_ratio: width of the images / their height; the width is whole at every resolution.
    """

    def __init__(
        self,
        channels: dict[int, int],
        text_dim: int = 384,
        final_dim: int = 256,
        blocks: int = 2,
        image_channels: int = 3,
        aspect_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        check_channels(channels)
        if blocks < 1:
            raise ValueError(f"R3GANDiscriminator.blocks {blocks} must be 1 or more")
        sides, widths = list(channels)[::-1], list(channels.values())[::-1]
        self.resolutions, self.text_dim, self.final_dim = (sides[0],), text_dim, final_dim
        self.image_channels, self.aspect_ratio = image_channels, aspect_ratio
        self.map_channels = dict(zip(sides, widths, strict=True))
        self.from_rgb = nn.Conv2d(image_channels, widths[0], 1)
        self.stages = nn.ModuleList()
        for before, width in itertools.pairwise([0, *widths]):
            layers: list[nn.Module] = [Resample(before, width, doubles=False)] if before else []
            layers += [ResNeXtBlock(width, blocks * len(widths)) for _ in range(blocks)]
            self.stages.append(nn.Sequential(*layers))
        # One weight a position and map, then a combination of the maps.
        last = (sides[-1], width_of(sides[-1], aspect_ratio))
        self.weigh = nn.Conv2d(widths[-1], widths[-1], last, groups=widths[-1], bias=False)
        self.to_final = nn.Linear(widths[-1], final_dim, bias=False)
        self.unconditional = nn.Linear(final_dim, 1)
        self.text = nn.Linear(text_dim, final_dim)
        nn.init.normal_(self.weigh.weight, std=math.prod(last) ** -0.5)
        nn.init.normal_(self.to_final.weight, std=widths[-1] ** -0.5)

    def extract_features(
        self, images: Float[Tensor, "b _c h w"], growth: Growth | None = None
    ) -> ImageFeatures:
        self.check_growth(images, growth)
        x = self.from_rgb(images)
        maps: dict[int, Tensor] = {}
        for stage in self.stages:
            x = stage(x)
            maps[x.shape[-2]] = x
        return ImageFeatures(maps, self.to_final(self.weigh(x).flatten(1)))

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Float[Tensor, "b 1"]:
        x = features.final
        match = (self.text(text.pooled) * x).sum(1, keepdim=True) * self.final_dim**-0.5
        return at_least_float32(self.unconditional(x) + match)
