"""ProGAN's discriminator (arXiv:1710.10196), here with captions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.models.discriminators.multiscale import append_stddev
from imagen_pl.models.layers.equalized import EqualizedConv2d, EqualizedLinear
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.resampling import downsample
from imagen_pl.models.layers.widths import check_channels
from imagen_pl.types import Growth, TextFeatures


class ProGANDiscriminator(Discriminator):
    """The generator's mirror image: pairs of convolutions with equalized learning rates, down to 4 px.

    The caption enters by projection (arXiv:1802.05637, eq. 3), where the paper has no condition.

    Args:
        channels: feature maps at each resolution, smallest first, each twice the one before. The last key is
            the resolution of the finished model.
        text_dim: size of the text encoder's vectors.
        minibatch_stddev: images per group whose standard deviation becomes an extra map of the last layer
            (section 3); 0 switches it off. A batch that it does not divide is one group.
    """

    def __init__(self, channels: dict[int, int], text_dim: int = 384, minibatch_stddev: int = 4) -> None:
        super().__init__()
        check_channels(channels)
        self.resolutions, self.text_dim, self.map_channels = tuple(channels), text_dim, dict(channels)
        self.minibatch_stddev = minibatch_stddev
        self.start = self.resolutions[0]
        self.final_dim = channels[self.start]
        self.grown = nn.ModuleDict()  # by resolution, written in decimal
        for resolution, width in channels.items():
            self.grown[str(resolution)] = (
                LastBlock(width, self.start, minibatch_stddev > 0)
                if resolution == self.start
                else DownBlock(width, channels[resolution // 2])
            )
        self.unconditional = EqualizedLinear(self.final_dim, 1, gain=1.0)
        self.text = EqualizedLinear(text_dim, self.final_dim, gain=1.0)

    def blocks(self) -> dict[int, nn.Module]:
        return {int(resolution): block for resolution, block in self.grown.items()}

    def extract_features(
        self, images: Float[Tensor, "b 3 r r"], growth: Growth | None = None
    ) -> ImageFeatures:
        growth = self.check_growth(images, growth)
        x = F.leaky_relu(self._from_rgb(growth.resolution, images), 0.2)
        maps: dict[int, Tensor] = {}
        for resolution in reversed(self.resolutions[1:]):
            if resolution > growth.resolution:
                continue
            maps[resolution] = x
            x = self.grown[str(resolution)](x)
            if resolution == growth.resolution and growth.fade < 1:
                coarse = F.leaky_relu(self._from_rgb(resolution // 2, downsample(images)), 0.2)
                x = coarse.lerp(x.to(coarse.dtype), growth.fade)
        maps[self.start] = x
        if self.minibatch_stddev:
            x = append_stddev(x, self.minibatch_stddev)
        return ImageFeatures(maps, self.grown[str(self.start)](x))

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Float[Tensor, "b 1"]:
        x = features.final
        match = (self.text(text.pooled) * x).sum(1, keepdim=True) * self.final_dim**-0.5
        return at_least_float32(self.unconditional(x) + match)

    def _from_rgb(self, resolution: int, images: Tensor) -> Tensor:
        block = self.grown[str(resolution)]
        assert isinstance(block, (DownBlock, LastBlock))
        return block.from_rgb(images)


class DownBlock(nn.Module):
    """One resolution: an input layer for RGB images, two convolutions, and the mean of each 2x2 square."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.from_rgb = EqualizedConv2d(3, channels, 1)
        self.first = EqualizedConv2d(channels, channels, 3, 1)
        self.second = EqualizedConv2d(channels, out_channels, 3, 1)

    def forward(self, x: Float[Tensor, "b c r r"]) -> Float[Tensor, "b o s s"]:
        for layer in (self.first, self.second):
            x = F.leaky_relu(layer(x), 0.2)
        return downsample(x)


class LastBlock(nn.Module):
    """The smallest resolution: an input layer for RGB images, and two convolutions from a map to a vector."""

    def __init__(self, channels: int, side: int, with_stddev: bool) -> None:
        super().__init__()
        self.from_rgb = EqualizedConv2d(3, channels, 1)
        self.first = EqualizedConv2d(channels + with_stddev, channels, 3, 1)
        self.second = EqualizedConv2d(channels, channels, side)

    def forward(self, x: Float[Tensor, "b i r r"]) -> Float[Tensor, "b c"]:
        for layer in (self.first, self.second):
            x = F.leaky_relu(layer(x), 0.2)
        return torch.flatten(x, 1)
