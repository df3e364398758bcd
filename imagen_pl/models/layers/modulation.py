"""Style modulation: a style vector scales each feature map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.layers.initialisation import SLOPE
from imagen_pl.models.layers.precision import at_least_float32


class ModulatedConv2d(nn.Module):
    """Convolution whose kernel is scaled by the style (StyleGAN2, arXiv:1912.04958, eq. 1 and 3).

    Scaling the input and the output instead of one kernel per sample gives the same numbers and lets
    the whole batch share one dense convolution, which is several times faster on a CPU.

    Args:
        in_channels: feature maps of the input.
        out_channels: feature maps of the output.
        kernel_size: side of the kernel, px; odd.
        style_dim: size of the style vector.
        demodulate: keep the output's variance at one whatever the style (eq. 3).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, style_dim: int, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.affine = nn.Linear(style_dim, in_channels)
        self.demodulate = demodulate
        nn.init.kaiming_normal_(self.weight, a=SLOPE, nonlinearity="leaky_relu")
        nn.init.normal_(self.affine.weight, std=style_dim**-0.5)
        nn.init.ones_(self.affine.bias)

    def forward(
        self, x: Float[Tensor, "b i h w"], style: Float[Tensor, "b style"]
    ) -> Float[Tensor, "b o h w"]:
        scale = self.affine(style)
        x = x * scale.to(x.dtype)[:, :, None, None]
        x = F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2)
        bias = self.bias.to(x.dtype)[None, :, None, None]
        if not self.demodulate:
            return x + bias
        return torch.addcmul(bias, x, self._demodulation(scale).to(x.dtype)[:, :, None, None])

    def _demodulation(self, scale: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        """sqrt(2) / ||scale * kernel||: the factor makes up for the variance that the leaky ReLU removes."""
        with torch.autocast(scale.device.type, enabled=False):
            power = at_least_float32(scale).square() @ at_least_float32(self.weight).square().sum((2, 3)).T
            return (2 / (1 + SLOPE**2)) ** 0.5 * torch.rsqrt(power + 1e-8)
