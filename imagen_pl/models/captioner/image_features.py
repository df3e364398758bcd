"""Image features for a captioner: maps of a frozen network, of one that is trained, or of the discriminator.

Axes: b batch, c channels, h w positions in a map, r pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.pretrained.backbones import Backbone, TimmBackbone


class CaptionFeatures(nn.Module, ABC):
    """Feature maps of images, the input of a captioner.

    Attributes, set by the subclass:
        channels: of each map.
        needs_discriminator: whether it reads the feature maps of a discriminator.
    """

    channels: tuple[int, ...]
    needs_discriminator: bool = False

    def check(self, map_channels: Mapping[int, int]) -> None:
        """Raise UserError if it does not fit a discriminator's maps: their channels, by resolution in px."""

    @abstractmethod
    def forward(
        self, images: Float[Tensor, "b _c h w"], discriminator_maps: Mapping[int, Tensor] | None = None
    ) -> list[Float[Tensor, "b c h w"]]:
        """Maps, differentiable with regard to the images.

        Args:
            images: -1 to 1.
            discriminator_maps: the discriminator's feature maps of these images, by resolution.
        """


class BackboneFeatures(CaptionFeatures):
    """Maps of a frozen network, which do not change during training.

    Args:
        backbone: the network; None takes EfficientNet-Lite0 at 64 px and its maps of strides 8 and 16.
    """

    def __init__(self, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.backbone = backbone if backbone is not None else TimmBackbone(maps=[2, 3])
        self.channels = self.backbone.channels

    def forward(
        self, images: Float[Tensor, "b _c h w"], discriminator_maps: Mapping[int, Tensor] | None = None
    ) -> list[Float[Tensor, "b c h w"]]:
        return self.backbone(images)


class TrainedFeatures(CaptionFeatures):
    """The last two maps of a small ResNet (arXiv:1512.03385), which is trained with the captioner.

    The stem halves the side, and so does each block that is wider than the one before it. In a frozen
    captioner the statistics of the batch norms stay as they were trained.

    Args:
        widths: channels of the blocks.
        image_channels: of the images.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 192), image_channels: int = 3) -> None:
        super().__init__()
        if len(widths) < 2:
            raise UserError(f"TrainedFeatures.widths {list(widths)} needs two blocks at least")
        self.stem = nn.Sequential(
            nn.Conv2d(image_channels, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        before = (widths[0], *widths)
        self.blocks = nn.ModuleList(_Block(a, b) for a, b in zip(before, widths, strict=False))
        self.channels = tuple(widths[-2:])

    def train(self, mode: bool = True) -> TrainedFeatures:
        """As of any module, but frozen features stay in evaluation mode."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def forward(
        self, images: Float[Tensor, "b _c h w"], discriminator_maps: Mapping[int, Tensor] | None = None
    ) -> list[Float[Tensor, "b c h w"]]:
        # On a CPU, convolutions in this format take three quarters of the time.
        maps = [self.stem(images.contiguous(memory_format=torch.channels_last))]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps[-2:]


class _Block(nn.Module):
    """Two 3x3 convolutions with a shortcut; a wider block halves the side."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        stride = 1 if before == width else 2
        self.first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(before, width, 1, 2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d _h _w"]:
        h = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(h)) + self.shortcut(x))


class DiscriminatorFeatures(CaptionFeatures):
    """A feature map of the run's own discriminator: almost free, but it changes during training.

    In the generator's step it is the map of the augmented image.

    Args:
        channels: of that map, as in the discriminator's `channels`.
        resolution: of that map, px; the first stage of growth must have it already.
    """

    needs_discriminator = True

    def __init__(self, channels: int, resolution: int = 8) -> None:
        super().__init__()
        self.channels, self.resolution = (channels,), resolution

    def check(self, map_channels: Mapping[int, int]) -> None:
        if self.resolution not in map_channels:
            raise UserError(
                f"the captioner's features.resolution {self.resolution} is not among the discriminator's "
                f"maps {sorted(map_channels)}"
            )
        right = map_channels[self.resolution]
        if self.channels != (right,):
            raise UserError(
                f"the captioner's features.channels is {self.channels[0]}, but the discriminator's map at "
                f"{self.resolution} px has {right}: set it to {right}"
            )

    def forward(
        self, images: Float[Tensor, "b _c h w"], discriminator_maps: Mapping[int, Tensor] | None = None
    ) -> list[Float[Tensor, "b c h w"]]:
        if discriminator_maps is None:
            raise UserError(
                "the captioner's DiscriminatorFeatures need a discriminator: take BackboneFeatures where "
                "there is none"
            )
        if self.resolution not in discriminator_maps:
            raise UserError(
                f"the captioner's features.resolution {self.resolution} is not among the maps of this stage, "
                f"{sorted(discriminator_maps)}: take one that the first stage of growth has"
            )
        return [discriminator_maps[self.resolution]]
