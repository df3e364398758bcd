"""A growing discriminator with heads at several scales.

Residual blocks, one per resolution, that grow as in arXiv:1710.10196. The caption enters by
projection (arXiv:1802.05637). Extra heads read other feature maps, as in GigaGAN (arXiv:2303.05511).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.models.layers.attention import SelfAttention
from imagen_pl.models.layers.initialisation import SLOPE, activation, conv, linear
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.resampling import downsample
from imagen_pl.models.layers.widths import check_channels
from imagen_pl.models.text.adapter import TextAdapter
from imagen_pl.types import Growth, TextFeatures, width_of


class MultiscaleDiscriminator(Discriminator):
    """Scores images from 8 px up to any power of two.

    Args:
        channels: feature maps at each resolution, smallest first, each twice the one before. The
            smallest is the resolution of the last map, which the main head flattens.
        text_dim: size of the text encoder's vectors.
        final_dim: size of the vector that summarises an image.
        heads_at: resolutions whose maps have a head of their own, beside the main head.
        self_attention_at: resolutions with self-attention between pixels.
        minibatch_stddev: images per group whose standard deviation becomes an extra map of the last layer,
            against mode collapse (arXiv:1710.10196, section 3); 0 switches it off. A batch that it does
            not divide is one group.
        text_adapter: fine-tunes the captions' features for this network; None uses them unchanged.
        image_channels: of the images: 3 for RGB, 4 for RGBA, or those of an autoencoder's latents.
        aspect_ratio: width of the images / their height; the width is whole at every resolution.
    """

    def __init__(
        self,
        channels: dict[int, int],
        text_dim: int = 384,
        final_dim: int = 256,
        heads_at: list[int] | None = None,
        self_attention_at: list[int] | None = None,
        minibatch_stddev: int = 0,
        text_adapter: TextAdapter | None = None,
        image_channels: int = 3,
        aspect_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        check_channels(channels)
        heads, self_at = set(heads_at or ()), set(self_attention_at or ())
        for name, at in (("heads_at", heads), ("self_attention_at", self_at)):
            if not at <= channels.keys():
                raise ValueError(f"{name} {sorted(at - channels.keys())} is not among {sorted(channels)}")
        self.resolutions, self.map_channels = tuple(channels), dict(channels)
        self.image_channels, self.aspect_ratio = image_channels, aspect_ratio
        self.text_dim, self.final_dim, self.minibatch_stddev = text_dim, final_dim, minibatch_stddev
        smallest = self.resolutions[0]
        self.grown = nn.ModuleDict()  # by resolution, written in decimal
        for resolution, width in channels.items():
            after = channels[max(resolution // 2, smallest)]
            self.grown[str(resolution)] = DownBlock(
                width,
                after,
                last=resolution == smallest,
                self_attention=resolution in self_at,
                image_channels=image_channels,
            )
        last = channels[smallest]
        self.last_conv = conv(last + (minibatch_stddev > 0), last, 3)
        self.to_final = linear(last * smallest * width_of(smallest, aspect_ratio), final_dim)
        self.main_head = ProjectionHead(final_dim, text_dim)
        self.extra_heads = nn.ModuleDict({str(r): MapHead(channels[r], text_dim) for r in sorted(heads)})
        self.activation = activation()
        if text_adapter is not None:
            text_adapter.check(text_dim)
        self.text_adapter = text_adapter

    def blocks(self) -> dict[int, nn.Module]:
        return {int(resolution): block for resolution, block in self.grown.items()}

    def extract_features(
        self, images: Float[Tensor, "b _c h w"], growth: Growth | None = None
    ) -> ImageFeatures:
        growth = self.check_growth(images, growth)
        x = self._block(growth.resolution).from_rgb(images)
        maps: dict[int, Tensor] = {}
        for resolution in reversed(self.resolutions):
            if resolution > growth.resolution:
                continue
            x, maps[resolution] = self._block(resolution)(x)
            if resolution == growth.resolution and growth.fade < 1 and resolution > self.resolutions[0]:
                coarse = self._block(resolution // 2).from_rgb(downsample(images))
                x = coarse.lerp(x.to(coarse.dtype), growth.fade)
        if self.minibatch_stddev:
            x = append_stddev(x, self.minibatch_stddev)
        x = self.activation(self.last_conv(x))
        return ImageFeatures(maps, self.activation(self.to_final(x.flatten(1))))

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Float[Tensor, "b k"]:
        if self.text_adapter is not None:
            text = self.text_adapter(text)
        logits = [self.main_head(features.final, text.pooled)]
        for resolution, head in self.extra_heads.items():
            if int(resolution) in features.maps:
                logits.append(head(features.maps[int(resolution)], text.pooled))
        return at_least_float32(torch.stack(logits, dim=1))

    def _block(self, resolution: int) -> DownBlock:
        block = self.grown[str(resolution)]
        assert isinstance(block, DownBlock)
        return block


class DownBlock(nn.Module):
    """What one resolution adds: an input layer for images, and a residual layer that halves the side.

    The block of the smallest resolution keeps the side.
    """

    def __init__(
        self, channels: int, out_channels: int, *, last: bool, self_attention: bool, image_channels: int = 3
    ) -> None:
        super().__init__()
        self.last = last
        self.from_rgb = conv(image_channels, channels, 3)
        self.first = conv(channels, channels, 3)
        self.second = conv(channels, out_channels, 3)
        self.skip = nn.Conv2d(channels, out_channels, 1, bias=False)
        nn.init.dirac_(self.skip.weight)
        self.pixels = SelfAttention(channels, fused=False) if self_attention else None
        self.activation, self.activation_in_place = activation(), activation(inplace=True)

    def forward(
        self, x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b o _s _t"], Float[Tensor, "b c h w"]]:
        """The map for the next block, and this resolution's own."""
        h = self.first(self.activation(x))
        if self.pixels is not None:
            h = self.pixels(h)
        own = self.activation_in_place(h)
        if self.last:
            return (self.skip(x) + self.second(own)).mul_(0.5**0.5), own
        return (self.skip(downsample(x)) + self.second(downsample(own))).mul_(0.5**0.5), own


class ProjectionHead(nn.Module):
    """One logit from a vector and a caption (arXiv:1802.05637, eq. 3): psi(x) + <V text, x> / sqrt(f)."""

    def __init__(self, features: int, text_dim: int) -> None:
        super().__init__()
        self.unconditional = nn.Linear(features, 1)
        self.text = nn.Linear(text_dim, features)

    def forward(self, x: Float[Tensor, "b f"], pooled: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
        match = (self.text(pooled) * x).sum(1) * x.shape[1] ** -0.5
        return self.unconditional(x)[:, 0] + match


class MapHead(nn.Module):
    """One logit from a feature map: the mean of the logits of all positions."""

    def __init__(self, channels: int, text_dim: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels, 1)
        self.head = ProjectionHead(channels, text_dim)

    def forward(self, x: Float[Tensor, "b c h w"], pooled: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        # The head is linear after the activation, so averaging the positions first gives the same logit.
        return self.head(F.leaky_relu(self.conv(x), SLOPE).mean((2, 3)), pooled)


def append_stddev(x: Float[Tensor, "b c h w"], group: int) -> Float[Tensor, "b c+1 h w"]:
    """Append one map: the mean standard deviation within a group of images (arXiv:1710.10196, section 3)."""
    b, _, h, w = x.shape
    group = group if b % group == 0 else b
    grouped = at_least_float32(x).reshape(group, b // group, -1)
    spread = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean(1)  # one value a column of groups
    return torch.cat([x, spread.repeat(group).to(x.dtype).reshape(b, 1, 1, 1).expand(b, 1, h, w)], dim=1)
