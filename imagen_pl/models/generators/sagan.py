"""SAGAN's generator (arXiv:1805.08318): residual blocks, spectral normalization, self-attention."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.generators.base import Generator
from imagen_pl.models.layers.attention import SelfAttention
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.spectral import normalize_all
from imagen_pl.models.layers.widths import check_channels
from imagen_pl.types import Growth, TextFeatures


class SAGANGenerator(Generator):
    """Residual blocks from 4 px up, in which the caption sets gain and bias of each batch normalization.

    The paper's batch normalization is conditional on a class (arXiv:1610.07629); here the caption's vector
    takes the place of the class.

    Args:
        channels: feature maps at each resolution, smallest first, each twice the one before. The last key is
            the side of the images.
        text_dim: size of the text encoder's vectors.
        latent_dim: size of the latent z.
        self_attention_at: resolutions with self-attention between pixels; the paper has it at 32 px.
    """

    def __init__(
        self,
        channels: dict[int, int],
        text_dim: int = 384,
        latent_dim: int = 128,
        self_attention_at: list[int] | None = None,
    ) -> None:
        super().__init__()
        check_channels(channels)
        attention_at = set(self_attention_at or ())
        if not attention_at <= channels.keys():
            unknown = sorted(attention_at - channels.keys())
            raise ValueError(f"self_attention_at {unknown} is not among {sorted(channels)}")
        self.resolutions, self.latent_dim, self.text_dim = (list(channels)[-1],), latent_dim, text_dim
        self.start = next(iter(channels))
        before = channels[self.start]
        self.first_map = nn.Linear(latent_dim, before * self.start**2)
        self.up = nn.ModuleList()
        self.attention = nn.ModuleDict()  # by resolution, written in decimal
        for resolution, width in list(channels.items())[1:]:
            self.up.append(UpBlock(before, width, text_dim))
            if resolution in attention_at:
                self.attention[str(resolution)] = SelfAttention(width)
            before = width
        self.last_norm = nn.BatchNorm2d(before)
        self.to_rgb = nn.Conv2d(before, 3, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight)
        for network in (self.first_map, *self.up, *self.attention.values(), self.to_rgb):
            normalize_all(network)

    def forward(  # type: ignore[override]  # no guidance
        self,
        z: Float[Tensor, "b z"],
        text: TextFeatures,
        growth: Growth | None = None,
        truncation: float = 1.0,
    ) -> Float[Tensor, "b 3 r r"]:
        self.check_growth(growth)
        x = self.first_map(truncation * z).unflatten(1, (-1, self.start, self.start))
        for block in self.up:
            x = block(x, text.pooled)
            if str(x.shape[-1]) in self.attention:
                x = self.attention[str(x.shape[-1])](x)
        return at_least_float32(self.to_rgb(F.relu(self.last_norm(x))).tanh())


class UpBlock(nn.Module):
    """A residual block that doubles the side: twice a norm, a ReLU and a convolution."""

    def __init__(self, in_channels: int, out_channels: int, text_dim: int) -> None:
        super().__init__()
        self.first_norm = ConditionalBatchNorm(in_channels, text_dim)
        self.first = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.second_norm = ConditionalBatchNorm(out_channels, text_dim)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1)

    def forward(
        self, x: Float[Tensor, "b i r r"], pooled: Float[Tensor, "b c"]
    ) -> Float[Tensor, "b o 2*r 2*r"]:
        h = F.interpolate(F.relu(self.first_norm(x, pooled)), scale_factor=2)
        h = self.second(F.relu(self.second_norm(self.first(h), pooled)))
        return h + F.interpolate(self.skip(x), scale_factor=2)


class ConditionalBatchNorm(nn.Module):
    """Batch normalization with a gain and a bias that are linear functions of the caption's vector."""

    def __init__(self, channels: int, text_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = _from_zero(text_dim, channels)
        self.bias = _from_zero(text_dim, channels)

    def forward(self, x: Float[Tensor, "b i h w"], pooled: Float[Tensor, "b c"]) -> Float[Tensor, "b i h w"]:
        gain, bias = self.gain(pooled).to(x.dtype), self.bias(pooled).to(x.dtype)
        return self.norm(x) * (1 + gain[:, :, None, None]) + bias[:, :, None, None]


def _from_zero(in_features: int, out_features: int) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
