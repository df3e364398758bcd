"""Several discriminators combined into one.

Axes: b batch, h w pixels, k heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.types import Growth, TextFeatures


@dataclass
class JointFeatures(ImageFeatures):
    """parts: the features of each discriminator. `maps` and `final` are those of the first, `frozen` those of
    the first one with a frozen backbone."""

    parts: list[ImageFeatures]


class JointDiscriminator(Discriminator):
    """Concatenates the logits of all of its discriminators.

    The other losses read the features of the first one, except `frozen`, which comes from the first one with
    a frozen backbone.

    A loss is the mean over the logits, and one discriminator may give more of them than another. So their
    columns are repeated until each discriminator has its share of the mean; its own heads count equally.
    Gradient penalties apply to the first one alone: they cannot change the gradients of a frozen network
    (arXiv:2111.01007 uses none). If the first one has half the share of the loss, its penalty weighs twice as
    much in comparison.

    Args:
        discriminators: the first is the one that grows, is penalised, and gives `maps` and `final` to the
            other losses.
        shares: weight of each one's logits, such as [2, 1]; None weights all equally.
    """

    def __init__(self, discriminators: list[Discriminator], shares: list[int] | None = None) -> None:
        super().__init__()
        shares = [1] * len(discriminators) if shares is None else shares
        if not discriminators or len(shares) != len(discriminators) or min(shares) < 1:
            raise UserError(
                f"discriminator.shares {shares} must be a whole number from 1 up for each of the "
                f"{len(discriminators)} discriminators"
            )
        first = discriminators[0]
        for i, other in enumerate(discriminators):
            for name in ("resolutions", "text_dim", "image_channels", "aspect_ratio"):
                own, firsts = getattr(other, name), getattr(first, name)
                if own != firsts:
                    raise UserError(
                        f"discriminators[{i}].{name} is {own}, the first one's {firsts}: make them equal"
                    )
        self.parts, self.shares = nn.ModuleList(discriminators), list(shares)
        self.resolutions, self.text_dim = first.resolutions, first.text_dim
        self.final_dim, self.map_channels = first.final_dim, first.map_channels
        self.image_channels, self.aspect_ratio = first.image_channels, first.aspect_ratio
        self.penalizable = first.penalizable
        self.frozen_channels = next(
            (part.frozen_channels for part in discriminators if part.frozen_channels), ()
        )

    @property
    def discriminators(self) -> list[Discriminator]:
        return [part for part in self.parts if isinstance(part, Discriminator)]

    @property
    def first(self) -> Discriminator:
        return self.discriminators[0]

    def blocks(self) -> dict[int, nn.Module]:
        return self.first.blocks()

    def extract_features(
        self, images: Float[Tensor, "b _c h w"], growth: Growth | None = None
    ) -> JointFeatures:
        seen = [part.extract_features(images, growth) for part in self.discriminators]
        frozen = next((features.frozen for features in seen if features.frozen), [])
        return JointFeatures(seen[0].maps, seen[0].final, seen, frozen=frozen)

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Float[Tensor, "b k"]:
        assert isinstance(features, JointFeatures)
        logits = [
            part.logits(seen, text) for part, seen in zip(self.discriminators, features.parts, strict=True)
        ]
        columns = lcm(*(x.shape[1] for x in logits))
        repeated = [
            x.repeat(1, share * columns // x.shape[1]) for x, share in zip(logits, self.shares, strict=True)
        ]
        return torch.cat(repeated, dim=1)

    def penalized_logits(
        self, images: Float[Tensor, "b _c h w"], text: TextFeatures, growth: Growth | None = None
    ) -> Float[Tensor, "b k"]:
        return self.first.penalized_logits(images, text, growth)
