"""ProGAN's generator (arXiv:1710.10196), here with captions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.generators.base import Generator
from imagen_pl.models.layers.equalized import EqualizedConv2d, EqualizedLinear, PixelNorm
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.resampling import upsample
from imagen_pl.models.layers.widths import check_channels
from imagen_pl.types import Growth, TextFeatures


class ProGANGenerator(Generator):
    """Pairs of convolutions from 4 px up, with equalized learning rates and pixel normalization; it grows.

    While a block fades in, the image is a blend of its RGB output and that of the block below, enlarged
    (section 2). The paper's latent is joined here by the caption's vector, of which EqualizedLinear makes one
    of the same size.

    Args:
        channels: feature maps at each resolution, smallest first, each twice the one before. Its last key is
            the resolution of the finished model.
        text_dim: size of the text encoder's vectors.
        latent_dim: size of the latent z, which is normalized to the unit sphere times sqrt(latent_dim).
    """

    def __init__(self, channels: dict[int, int], text_dim: int = 384, latent_dim: int = 512) -> None:
        super().__init__()
        check_channels(channels)
        self.resolutions, self.latent_dim, self.text_dim = tuple(channels), latent_dim, text_dim
        self.pixel_norm = PixelNorm()
        self.read_caption = EqualizedLinear(text_dim, latent_dim)
        self.grown = nn.ModuleDict()  # by resolution, written in decimal
        self.start, before = self.resolutions[0], 2 * latent_dim
        for resolution, width in channels.items():
            self.grown[str(resolution)] = ProGANBlock(before, width, resolution, self.start)
            before = width

    def blocks(self) -> dict[int, nn.Module]:
        return {int(resolution): block for resolution, block in self.grown.items()}

    def forward(  # type: ignore[override]  # no guidance
        self,
        z: Float[Tensor, "b z"],
        text: TextFeatures,
        growth: Growth | None = None,
        truncation: float = 1.0,
    ) -> Float[Tensor, "b 3 r r"]:
        growth = self.check_growth(growth)
        caption = F.leaky_relu(self.read_caption(text.pooled), 0.2)
        # After the normalization, which would undo it.
        latent = truncation * self.pixel_norm(z)
        x = torch.cat([latent, self.pixel_norm(caption).to(latent.dtype)], dim=1)[:, :, None, None]
        coarser = x
        for resolution in self.resolutions:
            if resolution > growth.resolution:
                break
            coarser, x = x, self.grown[str(resolution)](x)
        rgb = self._block(growth.resolution).to_rgb(x)
        if growth.fade < 1 and growth.resolution > self.start:
            # Bilinear as the fade of real images here: other edges would give the generated ones away.
            below = upsample(self._block(growth.resolution // 2).to_rgb(coarser))
            rgb = below.lerp(rgb, growth.fade)
        return at_least_float32(rgb)

    def _block(self, resolution: int) -> ProGANBlock:
        block = self.grown[str(resolution)]
        assert isinstance(block, ProGANBlock)
        return block


class ProGANBlock(nn.Module):
    """One resolution: two convolutions, each with a leaky ReLU and pixel normalization, and an RGB output.

    That of the smallest resolution makes its map from a vector; each other one doubles the side first.
    """

    def __init__(self, in_channels: int, channels: int, resolution: int, start: int) -> None:
        super().__init__()
        self.doubles = resolution > start
        # On a vector, a kernel as large as the map, padded so that the vector becomes the map.
        kernel = 3 if self.doubles else start
        self.first = EqualizedConv2d(in_channels, channels, kernel, 1 if self.doubles else start - 1)
        self.second = EqualizedConv2d(channels, channels, 3, 1)
        self.pixel_norm = PixelNorm()
        self.to_rgb = EqualizedConv2d(channels, 3, 1, gain=1.0)

    def forward(self, x: Float[Tensor, "b i _h _w"]) -> Float[Tensor, "b c r r"]:
        if self.doubles:
            x = F.interpolate(x, scale_factor=2)
        for layer in (self.first, self.second):
            x = self.pixel_norm(F.leaky_relu(layer(x), 0.2))
        return x
