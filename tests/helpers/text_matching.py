"""Images and captions whose match is known, for the losses that tie them together."""

from __future__ import annotations

import torch
from torch import Tensor

from imagen_pl.losses.base import LossInputs
from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.types import Growth, TextFeatures


class Dot(Discriminator):
    """Its logit is the product of the image's vector and the caption's."""

    resolutions, text_dim, final_dim = (4,), 6, 6

    def extract_features(self, images: Tensor, growth: Growth | None = None) -> ImageFeatures:
        return ImageFeatures({4: images}, images.flatten(1)[:, :6])

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Tensor:
        return (features.final * text.pooled).sum(1, keepdim=True)

    def blocks(self) -> dict[int, torch.nn.Module]:
        return {}


def features_of(final: Tensor, *maps: Tensor) -> ImageFeatures:
    return ImageFeatures({m.shape[-1]: m for m in maps}, final)


def matching_inputs(
    features: ImageFeatures, text: TextFeatures, real_features: ImageFeatures | None = None
) -> LossInputs:
    return LossInputs(torch.zeros(len(text), 3, 4, 4), features, text, Growth(4), real_features=real_features)


def like_captions(text: TextFeatures, noise: float = 0.0) -> ImageFeatures:
    """Images whose vectors are their captions'."""
    draw = torch.Generator().manual_seed(3)
    return features_of(text.pooled + noise * torch.randn(text.pooled.shape, generator=draw))
