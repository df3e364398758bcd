"""A frozen network's feature maps of generated and of real images, for losses that compare them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from imagen_pl.losses.base import LossInputs, LossTerm
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.pretrained.backbones import Backbone, frozen_names

Maps = list[Float[Tensor, "b _c _h _w"]]


def check_backbone(term: LossTerm, backbone: Backbone | None, discriminator: Discriminator) -> None:
    """Raise ValueError if a term has no backbone of its own and the discriminator has none either."""
    if backbone is None and not frozen_names(discriminator):
        raise ValueError(
            f"{type(term).__name__}.backbone is not given, and the discriminator has none: give one, as "
            "imagen_pl.models.pretrained.backbones.TimmBackbone"
        )


def compared_maps(
    backbone: Backbone | None, inputs: LossInputs, count: int | None = None
) -> tuple[Maps, Maps]:
    """The feature maps of the generated images, and those of the real images of the same captions.

    Args:
        backbone: the frozen network; None takes the maps that the discriminator's own has computed.
        inputs: of the generator's step.
        count: the first so many images; None takes all.
    """
    if backbone is None and inputs.real_features is not None:
        generated, real = inputs.features.frozen, inputs.real_features.frozen
        return [each[:count] for each in generated], [each[:count] for each in real]
    if backbone is None or inputs.real_images is None:
        raise ValueError("feature matching compares: give the real images too")
    with torch.no_grad():
        real = backbone(inputs.real_images[:count])
    return backbone(inputs.images[:count]), real
