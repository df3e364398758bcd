"""What a captioner sees of an image: maps of a frozen network, or of the run's own discriminator.

Axes: b batch, c channels, h w places, r pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.pretrained.backbones import Backbone, TimmBackbone


class CaptionFeatures(nn.Module, ABC):
    """Feature maps of images, for a captioner to look at.

    Attributes, set by the subclass:
        channels: of each map.
        needs_discriminator: it reads what a discriminator saw.
    """

    channels: tuple[int, ...]
    needs_discriminator: bool = False

    def check(self, map_channels: Mapping[int, int]) -> None:
        """Raise ValueError where it does not fit a discriminator's maps, whose channels are given by px."""

    @abstractmethod
    def forward(
        self, images: Float[Tensor, "b 3 r r"], seen: Mapping[int, Tensor] | None = None
    ) -> list[Float[Tensor, "b c h w"]]:
        """Maps, differentiable with regard to the images.

        Args:
            images: -1 to 1.
            seen: the discriminator's maps of them, by resolution.
        """


class BackboneFeatures(CaptionFeatures):
    """Maps of a frozen network: what it sees does not change while the GAN learns.

    Args:
        backbone: the network; None takes EfficientNet-Lite0 at 64 px, its maps of strides 8 and 16.
    """

    def __init__(self, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.backbone = backbone if backbone is not None else TimmBackbone(maps=[2, 3])
        self.channels = self.backbone.channels

    def forward(
        self, images: Float[Tensor, "b 3 r r"], seen: Mapping[int, Tensor] | None = None
    ) -> list[Float[Tensor, "b c h w"]]:
        return self.backbone(images)


class DiscriminatorFeatures(CaptionFeatures):
    """A map of the run's own discriminator, which costs next to nothing and changes as it learns.

    In the generator's step that map is of the augmented image.

    Args:
        channels: of that map, as the discriminator's `channels` say.
        resolution: whose map, px; it must be there from the first stage of growth on.
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
        self, images: Float[Tensor, "b 3 r r"], seen: Mapping[int, Tensor] | None = None
    ) -> list[Float[Tensor, "b c h w"]]:
        if seen is None:
            raise UserError(
                "the captioner's DiscriminatorFeatures need a discriminator: take BackboneFeatures where "
                "there is none"
            )
        if self.resolution not in seen:
            raise UserError(
                f"the captioner's features.resolution {self.resolution} is not among the maps of this stage, "
                f"{sorted(seen)}: take one that the first stage of growth has"
            )
        return [seen[self.resolution]]
