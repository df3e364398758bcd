"""The shared convolution equals StyleGAN2's with one kernel a sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_pl.models.layers.modulation import ModulatedConv2d

pytestmark = pytest.mark.usefixtures("one_thread")


def _one_kernel_a_sample(layer: ModulatedConv2d, x: Tensor, style: Tensor) -> Tensor:
    """arXiv:1912.04958, eq. 1 and 3, sample by sample, times the gain of a leaky ReLU of slope 0.2."""
    pictures = []
    for sample, s in zip(x, style, strict=True):
        scale = layer.affine.weight @ s + layer.affine.bias
        kernel = scale[None, :, None, None] * layer.weight  # eq. 1: w'_ijk = s_i w_ijk
        if layer.demodulate:
            length = (kernel.square().sum((1, 2, 3)) + 1e-8).sqrt()  # eq. 3
            kernel = kernel / length[:, None, None, None] * (2 / (1 + 0.2**2)) ** 0.5
        padding = layer.weight.shape[-1] // 2
        pictures.append(F.conv2d(sample[None], kernel, layer.bias, padding=padding)[0])
    return torch.stack(pictures)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_modulated_convolution_equals_one_kernel_a_sample(kernel_size: int, demodulate: bool) -> None:
    torch.manual_seed(0)
    layer = ModulatedConv2d(6, 5, kernel_size, style_dim=7, demodulate=demodulate)
    torch.nn.init.normal_(layer.bias)
    x, style = torch.randn(3, 6, 8, 8), 2 * torch.randn(3, 7)

    out = layer(x, style)

    torch.testing.assert_close(out, _one_kernel_a_sample(layer, x, style), rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_one_kernel_a_sample() -> None:
    torch.manual_seed(0)
    layer = ModulatedConv2d(4, 4, 3, style_dim=5).double()
    x, style = torch.randn(2, 4, 4, 4, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    weights = torch.randn(2, 4, 4, 4, dtype=torch.float64)

    def gradients(out: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((out * weights).sum(), list(layer.parameters())))

    for mine, slow in zip(
        gradients(layer(x, style)), gradients(_one_kernel_a_sample(layer, x, style)), strict=True
    ):
        torch.testing.assert_close(mine, slow, rtol=1e-9, atol=1e-9)


def test_demodulation_keeps_the_variance_whatever_the_style() -> None:
    torch.manual_seed(0)
    layer = ModulatedConv2d(64, 64, 3, style_dim=8)
    x = torch.randn(4, 64, 16, 16)

    power = {
        loud: F.leaky_relu(layer(x, loud * torch.randn(4, 8)), 0.2).square().mean() for loud in (0.1, 1, 30)
    }

    assert all(0.85 < value < 1.15 for value in power.values()), power
