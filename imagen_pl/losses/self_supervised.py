"""Pretext tasks on the images' own colour and shape: what they share, and which way up an image is.

Axes: b images of the step, n images that are asked about, r pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, LossTerm, PerSample, check_size
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.schedules import Schedule


class SelfSupervisedTask(LossTerm):
    """A question about an image that needs no caption: its head learns with the discriminator.

    Args:
        share: share of the images that are asked about, above 0 to 1: each costs another look.
        discriminator_weight: factor in the discriminator's loss, on real images: a number, or a schedule of
            images seen; 0 leaves the task out.
        generator_weight: factor in the generator's loss, on generated images, likewise.
        from_resolution: resolution, px, below which the task is left out.
    """

    def __init__(
        self,
        share: float,
        discriminator_weight: float | Schedule,
        generator_weight: float | Schedule,
        from_resolution: int = 4,
    ) -> None:
        super().__init__(discriminator_weight, generator_weight, from_resolution)
        if not 0 < share <= 1:
            raise ValueError(f"{type(self).__name__}.share {share} must be above 0 and at most 1")
        self.share = share

    def asked(self, inputs: LossInputs) -> Float[Tensor, "n 3 r r"]:
        """The images that are asked about, at least one; a batch's rows are in random order already."""
        return inputs.images[: max(round(self.share * len(inputs.images)), 1)]

    def check_map(
        self, discriminator: Discriminator, resolution: int, channels: int, argument: str = "map_channels"
    ) -> None:
        """Raise ValueError unless the discriminator gives such a map whenever the task asks for it."""
        maps, name = discriminator.map_channels, type(self).__name__
        if resolution not in maps:
            raise ValueError(
                f"{name} reads a map of {resolution} px, but the discriminator's are of {sorted(maps)} px: "
                "change map_resolution"
            )
        check_size(self, argument, channels, maps[resolution], f"the discriminator's map of {resolution} px")
        if self.from_resolution < resolution:
            raise ValueError(
                f"{name}.from_resolution {self.from_resolution} must be {resolution} or more: smaller images "
                f"have no map of {resolution} px"
            )


class Rotation(SelfSupervisedTask):
    """Which of four ways up is this image? (SSGAN, arXiv:1811.11212, section 3)

    The discriminator learns it on real images, so that it goes on to look at whole shapes while the game
    moves; the generator is to draw images that stand as clearly.

    Args:
        image_dim: size of the discriminator's `final_dim`.
        share: share of the images that are turned, above 0 to 1: each costs another look.
        discriminator_weight: factor in the discriminator's loss, on real images: a number, or a schedule of
            images seen; 0 leaves it out. The paper's is 1.
        generator_weight: factor in the generator's loss, on generated images, likewise; the paper's is 0.2.
        from_resolution: resolution, px, below which the task is left out.
    """

    name = "rotation"

    def __init__(
        self,
        image_dim: int = 256,
        share: float = 0.25,
        discriminator_weight: float | Schedule = 1.0,
        generator_weight: float | Schedule = 0.2,
        from_resolution: int = 4,
    ) -> None:
        super().__init__(share, discriminator_weight, generator_weight, from_resolution)
        self.head = nn.Linear(image_dim, 4)

    def check(self, discriminator: Discriminator) -> None:
        right = discriminator.final_dim
        check_size(self, "image_dim", self.head.in_features, right, "the discriminator's final_dim")

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        images = self.asked(inputs)
        n, device = len(images), images.device
        # All four in equal parts, as far as they go, in an order that nobody can learn.
        turns = (torch.randperm(n, device=device) + torch.randint(4, (), device=device)) % 4
        all_turns = torch.stack([images.rot90(k, (2, 3)) for k in range(4)])  # (4, n, 3, r, r)
        turned = all_turns[turns, torch.arange(n, device=device)]
        logits = self.head(discriminator.extract_features(turned, inputs.growth).final).float()
        self.note("accuracy", (logits.argmax(1) == turns).float().mean())
        return F.cross_entropy(logits, turns, reduction="none")
