"""R3GAN's generator (arXiv:2501.05441), here with captions."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.generators.base import Generator
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.resnext import Resample, ResNeXtBlock
from imagen_pl.models.layers.widths import check_channels
from imagen_pl.types import Growth, TextFeatures, width_of


class R3GANGenerator(Generator):
    """Residual blocks of grouped convolutions without normalization, noise or styles.

    Latent and caption together weight the maps of a learned basis, 4 px high; the blocks read nothing else.

    Args:
        channels: feature maps at each resolution, smallest first, each twice the one before. The last key is
            the height of the images.
        text_dim: size of the text encoder's vectors.
        latent_dim: size of the latent z.
        caption_dim: size of the vector that the caption becomes beside the latent.
        blocks: residual blocks at each resolution.
        image_channels: of the images: 3 for RGB, 4 for RGBA, or those of an autoencoder's latents.
        aspect_ratio: width of the images / their height; the width is whole at every resolution.
    """

    def __init__(
        self,
        channels: dict[int, int],
        text_dim: int = 384,
        latent_dim: int = 64,
        caption_dim: int = 64,
        blocks: int = 2,
        image_channels: int = 3,
        aspect_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        check_channels(channels)
        if blocks < 1:
            raise ValueError(f"R3GANGenerator.blocks {blocks} must be 1 or more")
        self.resolutions, self.latent_dim, self.text_dim = (list(channels)[-1],), latent_dim, text_dim
        self.image_channels, self.aspect_ratio = image_channels, aspect_ratio
        start, widths = next(iter(channels)), list(channels.values())
        self.read_caption = nn.Linear(text_dim, caption_dim)
        self.basis = nn.Parameter(torch.randn(widths[0], start, width_of(start, aspect_ratio)))
        self.weights = nn.Linear(latent_dim + caption_dim, widths[0], bias=False)
        for layer in (self.read_caption, self.weights):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        layers: list[nn.Module] = []
        for before, width in itertools.pairwise([widths[0], *widths]):
            if layers:
                layers.append(Resample(before, width, doubles=True))
            layers += [ResNeXtBlock(width, blocks * len(widths)) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers)
        self.to_rgb = nn.Conv2d(widths[-1], image_channels, 1)
        nn.init.normal_(self.to_rgb.weight, std=0.5 * widths[-1] ** -0.5)

    def forward(  # type: ignore[override]  # no guidance
        self,
        z: Float[Tensor, "b z"],
        text: TextFeatures,
        growth: Growth | None = None,
        truncation: float = 1.0,
    ) -> Float[Tensor, "b _c h w"]:
        self.check_growth(growth)
        weights = self.weights(torch.cat([truncation * z, self.read_caption(text.pooled)], dim=1))
        x = weights[:, :, None, None] * self.basis
        return at_least_float32(self.to_rgb(self.layers(x)))
