"""What losses on a frozen network's feature maps share.

Axes: b batch, f channels of all maps together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imagen_pl.losses.base import LossInputs, LossTerm, check_size
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.pretrained.backbones import Backbone, frozen_names
from imagen_pl.schedules import Schedule

Maps = list[Float[Tensor, "b _c _h _w"]]


class FrozenMapsLoss(LossTerm):
    """A loss of the generator on feature maps of its images and of the real ones with the same captions.

    The subclasses document the arguments.
    """

    def __init__(
        self, backbone: Backbone | None, generator_weight: float | Schedule, from_resolution: int
    ) -> None:
        super().__init__(0.0, generator_weight, from_resolution)
        self.backbone = backbone  # not registered as a submodule: its weights are not trained or saved
        self.needs_pairs = backbone is None
        self.reads_pixels = backbone is not None

    def check(self, discriminator: Discriminator) -> None:
        if self.backbone is None and not frozen_names(discriminator):
            raise ValueError(
                f"{type(self).__name__}.backbone is not given, and the discriminator has none: give one, as "
                "imagen_pl.models.pretrained.backbones.TimmBackbone"
            )

    def maps(self, inputs: LossInputs, count: int | None = None) -> tuple[Maps, Maps]:
        """The feature maps of the generated and of the real images, of the first `count` rows (None: all)."""
        if self.backbone is None and inputs.real_features is not None:
            generated, real = inputs.features.frozen, inputs.real_features.frozen
            return [each[:count] for each in generated], [each[:count] for each in real]
        if self.backbone is None or inputs.real_images is None:
            raise ValueError(f"{type(self).__name__} compares: give the real images too")
        with torch.no_grad():
            real = self.backbone(inputs.real_images[:count])
        return self.backbone(inputs.images[:count]), real


def mean_vectors(maps: Maps) -> Float[Tensor, "b f"]:
    """The means of the maps, one vector an image.

    Each map's part is scaled to length sqrt(channels), so that no map dominates the others.
    """
    means = [F.normalize(x.mean((2, 3)), dim=1) for x in maps]
    return torch.cat([x * x.shape[1] ** 0.5 for x in means], dim=1)


def check_channels(term: LossTerm, channels: int, discriminator: Discriminator) -> None:
    """Raise ValueError unless `channels` is that of all maps of the discriminator's frozen network."""
    expected = sum(discriminator.frozen_channels)
    if not expected:
        raise ValueError(
            f"{type(term).__name__}.backbone is null, but the discriminator reads no frozen network: name a "
            "backbone, or add a ProjectedDiscriminator"
        )
    check_size(term, "channels", channels, expected, "the number of channels of the discriminator's backbone")
