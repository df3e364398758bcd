"""Losses that make images follow their captions: an image should fit its own caption and no other.

The mismatched captions are others of the same batch, so these terms couple the samples of a batch; under
DDP each process uses its own batch alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, LossTerm, PerSample, check_size, mean_of_each
from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.schedules import Schedule


def caption_ids(inputs: LossInputs) -> Int64[Tensor, " b"]:
    """A number for each row, the same for rows with the same caption; on the CPU."""
    if not inputs.captions:
        return torch.arange(len(inputs.text))
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in inputs.captions])


class MismatchedCaptions(LossTerm):
    """A real image with a mismatched caption counts as fake (GAN-CLS, arXiv:1605.05396, algorithm 1).

    The mismatched captions are those of the batch, rolled by one row. The loss is the adversarial loss of
    the discriminator, with the matching pair as the real and the mismatched pair as the fake. It is 0 where
    the neighbour's caption is the same.
    """

    name = "mismatch"

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        matched = discriminator.logits(inputs.features, inputs.text)
        mismatched = discriminator.logits(inputs.features, inputs.text.roll())
        loss = adversarial.discriminator(matched, mismatched)
        ids = caption_ids(inputs)
        equal = ids == ids.roll(1)
        return loss.masked_fill(equal.to(loss.device), 0.0) if equal.any() else loss


class ImageTextContrastive(LossTerm):
    """Match images and captions within the batch (InfoNCE both ways, CLIP, arXiv:2103.00020).

    Samples with the same caption are not negatives of each other.

    Args:
        image_dim: size of the discriminator's `final_dim`.
        text_dim: size of the text encoder's vectors.
        embed_dim: size of the joint embedding space.
        temperature: initial value of the learned temperature.
        discriminator_weight: factor in the discriminator's loss, on real images.
        generator_weight: factor in the generator's loss, on generated images.
    """

    name = "contrastive"

    def __init__(
        self,
        image_dim: int = 256,
        text_dim: int = 384,
        embed_dim: int = 128,
        temperature: float = 0.1,
        discriminator_weight: float | Schedule = 1.0,
        generator_weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(discriminator_weight, generator_weight)
        self.image = nn.Linear(image_dim, embed_dim)
        self.text = nn.Linear(text_dim, embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(1 / temperature).log())

    def check(self, discriminator: Discriminator) -> None:
        image_dim, text_dim = self.image.in_features, self.text.in_features
        check_size(self, "image_dim", image_dim, discriminator.final_dim, "the discriminator's final_dim")
        check_size(self, "text_dim", text_dim, discriminator.text_dim, "the discriminator's text_dim")

    def vectors(self, inputs: LossInputs) -> Float[Tensor, "b f"]:
        """The feature vectors of the images."""
        return inputs.features.final

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        images = F.normalize(self.image(self.vectors(inputs)).float(), dim=1)
        captions = F.normalize(self.text(inputs.text.pooled).float(), dim=1)
        # The scale is at most 100, as in CLIP, so that one hard pair cannot blow up the loss.
        similarity = images @ captions.T * self.log_scale.exp().clamp(max=100)
        ids = caption_ids(inputs)
        equal = (ids[:, None] == ids).fill_diagonal_(False)
        if equal.any():
            similarity = similarity.masked_fill(equal.to(similarity.device), -torch.inf)
        own = torch.arange(len(inputs.text), device=similarity.device)
        by_image = F.cross_entropy(similarity, own, reduction="none")
        by_caption = F.cross_entropy(similarity.T, own, reduction="none")
        return (by_image + by_caption) / 2


class FeatureMatching(LossTerm):
    """A fake's discriminator features should equal those of the real image with the same caption.

    L1 over the feature maps and the final vector (pix2pixHD, arXiv:1711.11585, eq. 4), each divided by the
    real one's mean absolute value, so that all have equal weight. It suits data where each caption describes
    one image; where a caption fits many, it pulls towards their mean and reduces diversity.

    Args:
        generator_weight: factor in the generator's loss.
    """

    name = "feature_matching"
    needs_pairs = True

    def __init__(self, generator_weight: float | Schedule = 1.0) -> None:
        super().__init__(discriminator_weight=0.0, generator_weight=generator_weight)

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        if inputs.real_features is None:
            raise ValueError("feature matching compares: it needs inputs.real_features")
        terms = []
        for mine, theirs in zip(self._maps(inputs.features), self._maps(inputs.real_features), strict=True):
            size = theirs.abs().mean().clamp_min(1e-4)
            terms.append(mean_of_each((mine - theirs).abs()) / size)
        return torch.stack(terms).mean(0)

    @staticmethod
    def _maps(features: ImageFeatures) -> list[Float[Tensor, "b ..."]]:
        return [x.float() for x in (*features.maps.values(), features.final)]
