"""R3GAN's residual blocks (arXiv:2501.05441, section 3.3): grouped convolutions, no normalization."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.layers.initialisation import SLOPE
from imagen_pl.models.layers.resampling import downsample, upsample

_EXPANSION = 2  # of the inverted bottleneck
_GROUP = 16  # feature maps a group


class ResNeXtBlock(nn.Module):
    """x + 1x1 convolution, grouped 3x3 convolution, 1x1 convolution, with leaky ReLUs between them.

    As in Fixup (arXiv:1901.09321), the last convolution starts at zero and the others at He's deviation times
    L^(-1/4), where L is the number of blocks of the network, which takes the place of normalization.

    Args:
        channels: feature maps; twice as many must be a multiple of 16, or less than 16.
        blocks: L.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        hidden = _EXPANSION * channels
        groups = max(1, hidden // _GROUP)
        if hidden % groups:
            raise ValueError(f"channels {channels} must be a multiple of {_GROUP // _EXPANSION}")
        self.widen = nn.Conv2d(channels, hidden, 1)
        self.grouped = nn.Conv2d(hidden, hidden, 3, padding=1, groups=groups)
        self.narrow = nn.Conv2d(hidden, channels, 1, bias=False)
        for layer in (self.widen, self.grouped):
            nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            layer.weight.data.mul_(blocks**-0.25)
        nn.init.zeros_(self.narrow.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        h = F.leaky_relu(self.widen(x), SLOPE)
        return x + self.narrow(F.leaky_relu(self.grouped(h), SLOPE))


class Resample(nn.Module):
    """Doubles or halves the side, with a 1x1 convolution on the smaller side where the width changes.

    Args:
        in_channels: feature maps of the input.
        out_channels: feature maps of the output.
        doubles: double the side, or halve it.
    """

    def __init__(self, in_channels: int, out_channels: int, *, doubles: bool) -> None:
        super().__init__()
        self.doubles = doubles
        self.width: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.width = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            nn.init.kaiming_normal_(self.width.weight, nonlinearity="linear")

    def forward(self, x: Float[Tensor, "b i _h _w"]) -> Float[Tensor, "b o _k _l"]:
        resampled: Tensor = upsample(self.width(x)) if self.doubles else self.width(downsample(x))
        return resampled
