"""A pretext task on identity: find the augmented view of the same image among the batch.

Axes: b images of the step, n sampled images, e dimensions of the embedding space, k images, f features.
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
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.layers.initialisation import activation, linear
from imagen_pl.schedules import Schedule


class InstanceDiscrimination(SelfSupervisedTask):
    """Match two views of an image among those of the batch (InsGen, arXiv:2106.04566, section 3).

    InfoNCE both ways over a projection of the discriminator's feature vector (arXiv:2002.05709, eq. 1). On
    real images the discriminator learns to distinguish all of them, however few there are; on generated
    images the generator learns to make distinguishable images, which works against collapse.

    The features of one view are those that the step computes anyway; the other view is augmented again and
    costs a forward pass. Images that are not sampled still serve as negatives. All negatives come from the
    batch, so neither a queue nor a moving average of the discriminator is kept, unlike in the paper.

    Args:
        image_dim: size of the discriminator's `final_dim`.
        embed_dim: size of the embedding space.
        temperature: a smaller one gives more weight to the most similar of the other images.
        augment: makes the second view; None takes colour and translation of DiffAugment.
        share: share of the images that are sampled, above 0 to 1: each costs another forward pass.
        discriminator_weight: factor in the discriminator's loss, on real images: a number, or a schedule of
            images seen; 0 skips the task. The paper's is 1.
        generator_weight: factor in the generator's loss, on generated images, likewise.
        from_resolution: resolution, px, below which the task is skipped.
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

    def check_generator(self, generator: Generator) -> None:
        self.augment.image_channels = generator.image_channels

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        again = discriminator.extract_features(self.augment(self.selected_images(inputs)), inputs.growth)
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
