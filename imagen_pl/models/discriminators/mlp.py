"""The first GAN's discriminator: fully connected layers (arXiv:1406.2661), here with captions."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.models.layers.initialisation import activation
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.types import Growth, TextFeatures


class MLPDiscriminator(Discriminator):
    """All pixels through fully connected layers with dropout; the last layer reads the caption too.

    Args:
        resolution: side of the images, px.
        widths: units of the hidden layers. They have leaky ReLUs, where the paper's are maxout.
        text_dim: size of the text encoder's vectors.
        caption_dim: size to which the caption's vector is reduced.
        dropout: share of the hidden units that are set to zero in training.
    """

    def __init__(
        self,
        resolution: int,
        widths: list[int],
        text_dim: int = 384,
        caption_dim: int = 128,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("MLPDiscriminator.widths is empty: give the units of one hidden layer or more")
        self.resolutions, self.text_dim, self.final_dim = (resolution,), text_dim, widths[-1]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise([3 * resolution**2, *widths]):
            layers += [nn.Linear(before, after), activation(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)
        self.read_caption = nn.Sequential(nn.Linear(text_dim, caption_dim), activation())
        self.judge = nn.Sequential(
            nn.Linear(widths[-1] + caption_dim, widths[-1]), activation(), nn.Linear(widths[-1], 1)
        )

    def extract_features(
        self, images: Float[Tensor, "b 3 r r"], growth: Growth | None = None
    ) -> ImageFeatures:
        self.check_growth(images, growth)
        return ImageFeatures({}, self.layers(images.flatten(1)))

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Float[Tensor, "b 1"]:
        caption = self.read_caption(text.pooled)
        return at_least_float32(self.judge(torch.cat([features.final, caption.to(features.final)], dim=1)))
