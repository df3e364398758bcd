"""SAGAN's discriminator (arXiv:1805.08318): residual blocks, spectral normalization, self-attention."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.models.layers.attention import SelfAttention
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.resampling import downsample
from imagen_pl.models.layers.spectral import normalize_all
from imagen_pl.models.layers.widths import check_channels
from imagen_pl.types import Growth, TextFeatures


class SAGANDiscriminator(Discriminator):
    """Residual blocks that halve the side, a sum over the last map, and the caption by projection.

    The projection is <V text, x> (arXiv:1802.05637, eq. 3).

    Args:
        channels: feature maps of the block that reads each resolution, smallest first, each twice the one
            before. The last key is the side of the images.
        text_dim: size of the text encoder's vectors.
        self_attention_at: resolutions with self-attention between pixels; not that of the images.
    """

    def __init__(
        self, channels: dict[int, int], text_dim: int = 384, self_attention_at: list[int] | None = None
    ) -> None:
        super().__init__()
        check_channels(channels)
        sides = list(channels)[::-1]
        attention_at = set(self_attention_at or ())
        if not attention_at <= set(sides[1:]):
            unknown = sorted(attention_at - set(sides[1:]))
            raise ValueError(f"self_attention_at {unknown} is not among {sides[:0:-1]}")
        self.resolutions, self.text_dim, self.final_dim = (sides[0],), text_dim, channels[sides[-1]]
        self.blocks_by_side = nn.ModuleDict()  # by the resolution that they read, written in decimal
        self.attention = nn.ModuleDict()
        before = 3
        for side in sides:
            if side in attention_at:
                self.attention[str(side)] = SelfAttention(before, fused=False)
            self.blocks_by_side[str(side)] = DownBlock(
                before, channels[side], first=before == 3, halves=side != sides[-1]
            )
            before = channels[side]
        self.map_channels = {side // 2: channels[side] for side in sides[:-1]}
        self.unconditional = nn.Linear(self.final_dim, 1)
        self.text = nn.Linear(text_dim, self.final_dim, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight)
        normalize_all(self)

    def extract_features(
        self, images: Float[Tensor, "b 3 r r"], growth: Growth | None = None
    ) -> ImageFeatures:
        self.check_growth(images, growth)
        x: Tensor = images
        maps: dict[int, Tensor] = {}
        for side, block in self.blocks_by_side.items():
            if side in self.attention:
                x = self.attention[side](x)
            x = block(x)
            if x.shape[-1] < int(side):
                maps[x.shape[-1]] = x
        return ImageFeatures(maps, F.relu(x).sum((2, 3)))

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Float[Tensor, "b 1"]:
        x = features.final
        match = (self.text(text.pooled) * x).sum(1, keepdim=True)
        return at_least_float32(self.unconditional(x) + match)


class DownBlock(nn.Module):
    """A residual block: ReLU, convolution, ReLU, convolution, mean of each 2x2 square.

    The first block of all has no ReLU before its first convolution. The last one keeps the side.
    """

    def __init__(self, in_channels: int, out_channels: int, *, first: bool, halves: bool) -> None:
        super().__init__()
        self.is_first, self.halves = first, halves
        self.first = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b i r r"]) -> Float[Tensor, "b o s s"]:
        h = self.second(F.relu(self.first(x if self.is_first else F.relu(x))))
        if not self.halves:
            return h + self.skip(x)
        return downsample(h) + self.skip(downsample(x))  # the same as after it, for a quarter of the work
