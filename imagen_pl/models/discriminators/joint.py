"""Several discriminators side by side, as one.

Axes: b batch, r pixels, k heads.
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
    """parts: what each of the discriminators has seen; `maps` and `final` are the first's, `frozen` is of the
    first one that judges by a frozen network."""

    parts: list[ImageFeatures]


class JointDiscriminator(Discriminator):
    """Judges by all of its discriminators; the first one's features serve the other terms, but
    for `frozen`, which the first one with a frozen network gives.

    A loss is the mean over the logits, and one discriminator may give more of them than another. So their
    columns are repeated until each has its share of the mean: its own heads count alike within it.
    Penalties hold down the first one's slopes alone, as before: those of a frozen network do not give way
    to them (arXiv:2111.01007 uses none). With half the share in the loss, they weigh twice as much.

    Args:
        discriminators: the first is the one that grows, is penalised, and is asked by the terms that ask for
            `maps` and `final`.
        shares: how much each one's judgement counts, as [2, 1]; None counts all alike.
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
            for name in ("resolutions", "text_dim"):
                own, firsts = getattr(other, name), getattr(first, name)
                if own != firsts:
                    raise UserError(
                        f"discriminators[{i}].{name} is {own}, the first one's {firsts}: make them equal"
                    )
        self.parts, self.shares = nn.ModuleList(discriminators), list(shares)
        self.resolutions, self.text_dim = first.resolutions, first.text_dim
        self.final_dim, self.map_channels = first.final_dim, first.map_channels
        self.penalizable = first.penalizable

    @property
    def discriminators(self) -> list[Discriminator]:
        return [part for part in self.parts if isinstance(part, Discriminator)]

    @property
    def first(self) -> Discriminator:
        return self.discriminators[0]

    def blocks(self) -> dict[int, nn.Module]:
        return self.first.blocks()

    def extract_features(
        self, images: Float[Tensor, "b 3 r r"], growth: Growth | None = None
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
        self, images: Float[Tensor, "b 3 r r"], text: TextFeatures, growth: Growth | None = None
    ) -> Float[Tensor, "b k"]:
        return self.first.penalized_logits(images, text, growth)
