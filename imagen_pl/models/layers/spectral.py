"""Spectral normalization of a whole network (arXiv:1802.05957)."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


def normalize_all(network: nn.Module) -> None:
    """Divide the weights of each convolution and fully connected layer by their largest singular value.

    That value is estimated by one power iteration in each forward pass in training mode. Weights that start
    at zero are left as they are: their largest singular value is zero.
    """
    for layer in list(network.modules()):
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and bool(layer.weight.any()):
            spectral_norm(layer)
