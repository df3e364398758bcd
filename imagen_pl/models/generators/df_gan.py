"""DF-GAN's generator (arXiv:2008.05865, section 3): one stage, with the caption in every block."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.generators.base import Generator
from imagen_pl.models.layers.initialisation import activation
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.widths import check_channels
from imagen_pl.types import Growth, TextFeatures


class DFGANGenerator(Generator):
    """Residual blocks that double the side, each with four affine changes by the caption and the latent.

    Args:
        channels: feature maps at each resolution, smallest first, each twice the one before. The last key is
            the side of the images.
        text_dim: size of the text encoder's vectors.
        latent_dim: size of the latent z.
    """

    def __init__(self, channels: dict[int, int], text_dim: int = 384, latent_dim: int = 100) -> None:
        super().__init__()
        check_channels(channels)
        self.resolutions, self.latent_dim, self.text_dim = (list(channels)[-1],), latent_dim, text_dim
        self.start, widths = next(iter(channels)), list(channels.values())
        self.first_map = nn.Linear(latent_dim, widths[0] * self.start**2)
        condition = latent_dim + text_dim
        self.layers = nn.ModuleList(FusionBlock(a, b, condition) for a, b in itertools.pairwise(widths))
        self.to_rgb = nn.Sequential(activation(), nn.Conv2d(widths[-1], 3, 3, padding=1), nn.Tanh())

    def forward(  # type: ignore[override]  # no guidance
        self,
        z: Float[Tensor, "b z"],
        text: TextFeatures,
        growth: Growth | None = None,
        truncation: float = 1.0,
    ) -> Float[Tensor, "b 3 r r"]:
        self.check_growth(growth)
        z = truncation * z
        condition = torch.cat([z, text.pooled.to(z.dtype)], dim=1)
        x = self.first_map(z).unflatten(1, (-1, self.start, self.start))
        for layer in self.layers:
            x = layer(x, condition)
        return at_least_float32(self.to_rgb(x))


class FusionBlock(nn.Module):
    """Doubles the side, then adds two convolutions, before each of which the caption changes the maps."""

    def __init__(self, in_channels: int, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.first_fusion, self.first = Fusion(in_channels, condition_dim), _conv(in_channels, channels)
        self.second_fusion, self.second = Fusion(channels, condition_dim), _conv(channels, channels)
        same = in_channels == channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1)

    def forward(
        self, x: Float[Tensor, "b i h w"], condition: Float[Tensor, "b _d"]
    ) -> Float[Tensor, "b c 2*h 2*w"]:
        x = F.interpolate(x, scale_factor=2)
        h = self.first(self.first_fusion(x, condition))
        return self.skip(x) + self.second(self.second_fusion(h, condition))


class Fusion(nn.Module):
    """Twice an affine change of each map and an activation (the paper's figure 4)."""

    def __init__(self, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.affine = nn.ModuleList(Affine(channels, condition_dim) for _ in range(2))
        self.activation = activation()

    def forward(
        self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b _d"]
    ) -> Float[Tensor, "b c h w"]:
        for affine in self.affine:
            x = self.activation(affine(x, condition))
        return x


class Affine(nn.Module):
    """gain(condition) x + shift(condition) for each map (eq. 2 to 4); at first it changes nothing."""

    def __init__(self, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.gain, self.shift = (
            nn.Sequential(nn.Linear(condition_dim, channels), nn.ReLU(), nn.Linear(channels, channels))
            for _ in range(2)
        )
        for network, start in ((self.gain, 1.0), (self.shift, 0.0)):
            last = network[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, start)

    def forward(
        self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b _d"]
    ) -> Float[Tensor, "b c h w"]:
        return self.gain(condition)[:, :, None, None] * x + self.shift(condition)[:, :, None, None]


def _conv(in_channels: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, padding=1)
