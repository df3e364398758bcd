"""Image features for a captioner: maps of a frozen network, or of the run's own discriminator.

Axes: b batch, c channels, h w positions in a map, r pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

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
