"""DF-GAN's discriminator (arXiv:2008.05865, section 3), for its matching-aware penalty."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.models.layers.initialisation import activation
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.resampling import downsample
from imagen_pl.models.layers.widths import check_channels
from imagen_pl.types import Growth, TextFeatures


class DFGANDiscriminator(Discriminator):
    """Residual blocks that halve the side; the caption is repeated at each position of the last map.

    One output says whether the image is real and matches the caption ("one-way output").

    Args:
        channels: feature maps at each resolution, smallest first, each twice the one before. The last key is
            the side of the images.
        text_dim: size of the text encoder's vectors.
    """

    def __init__(self, channels: dict[int, int], text_dim: int = 384) -> None:
        super().__init__()
        check_channels(channels)
        if len(channels) < 2:
            raise ValueError(f"DFGANDiscriminator.channels {channels} must have two resolutions or more")
        sides, widths = list(channels)[::-1], list(channels.values())[::-1]
        self.resolutions, self.text_dim, self.final_dim = (sides[0],), text_dim, widths[-1]
        self.map_channels = dict(zip(sides[1:], widths[1:], strict=True))
        self.from_rgb = nn.Conv2d(3, widths[0], 3, padding=1)
        self.layers = nn.ModuleList(HalvingBlock(a, b) for a, b in itertools.pairwise(widths))
        self.start = sides[-1]
        narrow = max(widths[-1] // 4, 1)
        self.judge = nn.Sequential(
            nn.Conv2d(widths[-1] + text_dim, narrow, 3, padding=1, bias=False),
            activation(),
            nn.Conv2d(narrow, 1, self.start, bias=False),
        )

    def extract_features(
        self, images: Float[Tensor, "b 3 r r"], growth: Growth | None = None
    ) -> ImageFeatures:
        self.check_growth(images, growth)
        x = self.from_rgb(images)
        maps: dict[int, Tensor] = {}
        for layer in self.layers:
            x = layer(x)
            maps[x.shape[-1]] = x
        return ImageFeatures(maps, x.mean((2, 3)))

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Float[Tensor, "b 1"]:
        x = features.maps[self.start]
        caption = text.pooled.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return at_least_float32(self.judge(torch.cat([x, caption], dim=1)).flatten(1))


class HalvingBlock(nn.Module):
    """Half the side, plus a learnt share, 0 at first, of two convolutions with activations."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, 4, stride=2, padding=1, bias=False),
            activation(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            activation(),
        )
        same = in_channels == channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1)
        self.share = nn.Parameter(torch.zeros(1))

    def forward(self, x: Float[Tensor, "b i r r"]) -> Float[Tensor, "b c s s"]:
        return self.skip(downsample(x)) + self.share * self.layers(x)
