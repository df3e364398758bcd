"""A pretext task on what makes an image itself: which of these is the same image, changed a little?

Axes: b images of the step, n images that are asked about, e entries of the space where views meet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, PerSample, check_size
from imagen_pl.losses.self_supervised import SelfSupervisedTask
from imagen_pl.models.augment import Augment, DiffAugment
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.layers.initialisation import activation, linear
from imagen_pl.schedules import Schedule


class InstanceDiscrimination(SelfSupervisedTask):
    """Two views of an image must find each other among the batch (InsGen, arXiv:2106.04566, section 3).

    InfoNCE both ways over a projection of the discriminator's vector (arXiv:2002.05709, eq. 1). On real
    images the discriminator learns to tell all of them apart, however few there are; on generated ones the
    generator learns to make images that can be told apart, which works against collapse.

    One view is what the discriminator has seen in the step anyway; the other is augmented afresh and costs a
    look. The images that are not asked about are still among those to choose from. Negatives are the
    batch's own, so neither a queue nor an average of the discriminator is kept, unlike in the paper.

    Args:
        image_dim: size of the discriminator's `final_dim`.
        embed_dim: size of the space where the views meet.
        temperature: smaller ones care more about the most similar of the other images.
        augment: makes the other view; None takes colour and translation of DiffAugment.
        share: share of the images that are asked about, above 0 to 1: each costs another look.
        discriminator_weight: factor in the discriminator's loss, on real images: a number, or a schedule of
            images seen; 0 leaves it out. The paper's is 1.
        generator_weight: factor in the generator's loss, on generated images, likewise.
        from_resolution: resolution, px, below which the task is left out.
    """

    name = "instance"

    def __init__(
        self,
        image_dim: int = 256,
        embed_dim: int = 128,
        temperature: float = 0.1,
        augment: Augment | None = None,
        share: float = 0.25,
        discriminator_weight: float | Schedule = 1.0,
        generator_weight: float | Schedule = 0.1,
        from_resolution: int = 8,
    ) -> None:
        super().__init__(share, discriminator_weight, generator_weight, from_resolution)
        if temperature <= 0:
            raise ValueError(f"InstanceDiscrimination.temperature {temperature} must be above 0")
        self.temperature = temperature
        self.augment = augment if augment is not None else DiffAugment(["color", "translation"])
        self.first = linear(image_dim, image_dim)
        self.second = nn.Linear(image_dim, embed_dim)
        self.activation = activation()

    def check(self, discriminator: Discriminator) -> None:
        right = discriminator.final_dim
        check_size(self, "image_dim", self.first.in_features, right, "the discriminator's final_dim")

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        again = discriminator.extract_features(self.augment(self.asked(inputs)), inputs.growth)
        changed, seen = self._embed(again.final), self._embed(inputs.features.final)
        similarity = (changed @ seen.T).float() / self.temperature  # (n, b)
        n = len(similarity)
        own = torch.arange(n, device=similarity.device)
        by_changed = F.cross_entropy(similarity, own, reduction="none")
        by_seen = F.cross_entropy(similarity[:, :n].T, own, reduction="none")
        self.note("accuracy", (similarity.argmax(1) == own).float().mean())
        return (by_changed + by_seen) / 2

    def _embed(self, final: Float[Tensor, "k f"]) -> Float[Tensor, "k e"]:
        return F.normalize(self.second(self.activation(self.first(final))).float(), dim=1)
