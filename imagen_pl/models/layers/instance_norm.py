"""Instance normalization (arXiv:1607.08022), for maps in the channels_last memory format.

Axes: b batch, c channels, h w pixels, n = h w.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_EPSILON = 1e-5  # added to the variance, as in torch's own


def instance_norm(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Each feature map of each image with mean 0 and variance 1, as torch.nn.functional.instance_norm gives.

    On a CPU, torch's own copies channels_last maps to another format and back; this one makes a network of
    convolutions with it about 1.4 times as fast (forward and backward). It can be differentiated once.
    """
    normalized: Tensor = _InstanceNorm.apply(x)
    return normalized


class _InstanceNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        pixels = _pixels(x)
        centred = pixels - _mean(pixels)
        scale = torch.rsqrt(_mean(centred * centred) + _EPSILON)
        y = centred.mul_(scale)
        ctx.save_for_backward(y, scale)
        return _maps(y, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """dx = scale * (g - mean(g) - y * mean(g * y))."""
        y, scale = ctx.saved_tensors
        g = _pixels(gradient).to(y.dtype)
        dx = torch.addcmul(g - _mean(g), y, _mean(g * y), value=-1).mul_(scale)
        return _maps(dx, gradient)


def _pixels(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """A view of channels_last maps, a copy of others."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _maps(pixels: Float[Tensor, "b n c"], like: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return pixels.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def _mean(pixels: Float[Tensor, "b n c"]) -> Float[Tensor, "b 1 c"]:
    """The mean over the pixels, by a matrix product, which is faster than a sum over the middle axis."""
    b, n, _ = pixels.shape
    return torch.bmm(pixels.new_full((1, 1, n), 1 / n).expand(b, 1, n), pixels)
