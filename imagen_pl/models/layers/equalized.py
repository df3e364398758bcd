"""Layers with an equalized learning rate, and pixel normalization (ProGAN, arXiv:1710.10196, section 4).

Weights are standard normal and are scaled in each forward pass by the constant of He's initialisation
(arXiv:1502.01852), so that Adam moves all weights equally fast in relation to their size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.layers.precision import at_least_float32

HE_GAIN = math.sqrt(2)


class EqualizedConv2d(nn.Module):
    """A convolution whose weights are scaled by gain / sqrt(in_channels * kernel_size^2).

    Args:
        in_channels: feature maps of the input.
        out_channels: feature maps of the output.
        kernel_size: side of the kernel, px.
        padding: zeros on each side, px.
        gain: sqrt(2) if a leaky ReLU follows, else 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, padding: int = 0, gain: float = HE_GAIN
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.padding, self.scale = padding, gain / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o _h _w"]:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class EqualizedLinear(nn.Module):
    """A fully connected layer whose weights are scaled by gain / sqrt(in_features)."""

    def __init__(self, in_features: int, out_features: int, gain: float = HE_GAIN) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = gain / math.sqrt(in_features)

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        return F.linear(x, self.weight * self.scale, self.bias)


class PixelNorm(nn.Module):
    """x / sqrt(mean over channels of x^2 + 1e-8), in each pixel (section 4.2)."""

    def forward(self, x: Float[Tensor, "b c *hw"]) -> Float[Tensor, "b c *hw"]:
        power = at_least_float32(x).square().mean(1, keepdim=True)
        return x * torch.rsqrt(power + 1e-8).to(x.dtype)
