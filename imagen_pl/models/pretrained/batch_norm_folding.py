"""Fold the batch norms of a frozen network into the convolutions before them.

Axes: o output channels.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn


@torch.no_grad()
def fold_batch_norms(network: nn.Module) -> None:
    """Fold each batch norm of a frozen EfficientNet into the convolution before it, in place.

        g (W x - m) / s + b  =  (g / s) W x + (b - g m / s)

    with the norm's weight g (o), bias b (o), mean m (o) and standard deviation s (o). The feature maps stay
    the same up to rounding and take less time: on small images the norms cost as much as the convolutions.
    In these networks a norm always reads the convolution that is registered just before it.
    """
    for parent in [*network.modules()]:
        for (_, conv), (name, norm) in itertools.pairwise([*parent.named_children()]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                _fold(conv, norm)
                setattr(parent, name, nn.Identity())


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    gain = norm.weight * torch.rsqrt(variance + norm.eps)
    bias = norm.bias - gain * mean
    if conv.bias is not None:
        bias += gain * conv.bias
    conv.weight.mul_(gain[:, None, None, None])
    conv.bias = nn.Parameter(bias, requires_grad=conv.weight.requires_grad)
