"""Initialisation of layers."""

from __future__ import annotations

from torch import nn

SLOPE = 0.2  # of every LeakyReLU here


def activation(inplace: bool = False) -> nn.LeakyReLU:
    """A leaky ReLU; in place it overwrites its input, which is faster where nothing else reads that."""
    return nn.LeakyReLU(SLOPE, inplace)


def conv(in_channels: int, out_channels: int, kernel_size: int, *, zero: bool = False) -> nn.Conv2d:
    """A same-size convolution that keeps the variance through a leaky ReLU (arXiv:1502.01852).

    `zero` initialises to zero, for the last layer of a residual branch (Fixup, arXiv:1901.09321).
    """
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    _initialise(layer, zero)
    return layer


def linear(in_features: int, out_features: int, *, zero: bool = False) -> nn.Linear:
    """A fully connected layer, initialised like `conv`."""
    layer = nn.Linear(in_features, out_features)
    _initialise(layer, zero)
    return layer


def _initialise(layer: nn.Conv2d | nn.Linear, zero: bool) -> None:
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
