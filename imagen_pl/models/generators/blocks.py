"""The style generator's block: what one resolution adds.

StyleGAN2's modulation (arXiv:1912.04958) in residual layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.layers.attention import CrossAttention, SelfAttention
from imagen_pl.models.layers.initialisation import activation
from imagen_pl.models.layers.modulation import ModulatedConv2d
from imagen_pl.models.layers.resampling import upsample
from imagen_pl.types import TextFeatures


@dataclass(frozen=True)
class BlockPlan:
    """The settings of one block.

    resolution: side of its output, px.
    in_channels: feature maps of its input.
    channels: feature maps of its output.
    style_dim: size of the style.
    upsampled: whether its input has half the side of its output; else the same.
    layers: residual layers, of two convolutions each.
    text_dim: size of the text encoder's vectors if the block has cross-attention to the caption; else None.
    self_attention: whether it has self-attention between pixels.
    noise: whether it adds learned amounts of noise in training.
    image_channels: of the image that it adds to.
    """

    resolution: int
    in_channels: int
    channels: int
    style_dim: int
    upsampled: bool
    layers: int
    text_dim: int | None
    self_attention: bool
    noise: bool
    image_channels: int = 3


class StyleBlock(nn.Module):
    """What one resolution adds: upsampling, modulated residual layers, attention and an RGB output.

    A subclass is another kind of block, named by its class path in YAML: its constructor takes the plan, then
    settings of its own, and it has a `to_rgb` that turns its feature maps into an image.

    Args:
        plan: the settings that the generator gives each block.
    """

    def __init__(self, plan: BlockPlan) -> None:
        super().__init__()
        before, channels, style_dim = plan.in_channels, plan.channels, plan.style_dim
        self.upsampled = plan.upsampled
        self.narrow = nn.Conv2d(before, channels, 1, bias=False) if before != channels else nn.Identity()
        self.layers = nn.ModuleList(
            ResidualLayer(channels, style_dim, plan.noise) for _ in range(plan.layers)
        )
        self.words = None if plan.text_dim is None else CrossAttention(channels, plan.text_dim)
        self.pixels = SelfAttention(channels) if plan.self_attention else None
        self.to_rgb = ModulatedConv2d(channels, plan.image_channels, 1, style_dim, demodulate=False)
        nn.init.normal_(self.to_rgb.weight, std=0.5 * channels**-0.5)

    def forward(
        self, x: Float[Tensor, "b i h w"], style: Float[Tensor, "b style"], text: TextFeatures
    ) -> Float[Tensor, "b c _r _s"]:
        x = self.narrow(x)  # before upsampling: the same result for a quarter of the work
        if self.upsampled:
            x = upsample(x)
        for layer in self.layers:
            x = layer(x, style)
        if self.words is not None:
            x = self.words(x, text.tokens, text.mask)
        return x if self.pixels is None else self.pixels(x)


class ResidualLayer(nn.Module):
    """x + convolve(convolve(x)), both modulated; the sum keeps the variance of x."""

    def __init__(self, channels: int, style_dim: int, noise: bool) -> None:
        super().__init__()
        self.first = ModulatedConv2d(channels, channels, 3, style_dim)
        self.second = ModulatedConv2d(channels, channels, 3, style_dim)
        self.noise = nn.Parameter(torch.zeros(channels)) if noise else None
        self.activation = activation(inplace=True)

    def forward(
        self, x: Float[Tensor, "b c h w"], style: Float[Tensor, "b style"]
    ) -> Float[Tensor, "b c h w"]:
        h = self.activation(self.first(x, style))
        if self.noise is not None and self.training:  # when sampling, the mean of the noise, 0
            fresh = torch.randn(x.shape[0], 1, *x.shape[2:], device=x.device, dtype=h.dtype)
            h = h + self.noise.to(h.dtype)[None, :, None, None] * fresh
        h = self.activation(self.second(h, style))
        return (x + h).mul_(0.5**0.5)
