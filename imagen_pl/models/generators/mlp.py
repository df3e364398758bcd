"""The first GAN's generator: fully connected layers (arXiv:1406.2661), here with captions."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.generators.base import Generator
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.types import Growth, TextFeatures


class MLPGenerator(Generator):
    """Latent and caption, concatenated, through fully connected layers with ReLUs; tanh at the end.

    It shows what a GAN is in a few lines; the other generators draw better.

    Args:
        resolution: side of the images, px.
        widths: units of the hidden layers.
        text_dim: size of the text encoder's vectors.
        latent_dim: size of the latent z.
        caption_dim: size to which the caption's vector is reduced before it joins the latent, as in GAN-CLS
            (arXiv:1605.05396, section 4.1).
    """

    def __init__(
        self,
        resolution: int,
        widths: list[int],
        text_dim: int = 384,
        latent_dim: int = 100,
        caption_dim: int = 128,
    ) -> None:
        super().__init__()
        self.resolutions, self.latent_dim, self.text_dim = (resolution,), latent_dim, text_dim
        self.read_caption = nn.Sequential(nn.Linear(text_dim, caption_dim), nn.LeakyReLU(0.2))
        sizes = [latent_dim + caption_dim, *widths]
        hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], 3 * resolution**2), nn.Tanh())

    def forward(  # type: ignore[override]  # no guidance
        self,
        z: Float[Tensor, "b z"],
        text: TextFeatures,
        growth: Growth | None = None,
        truncation: float = 1.0,
    ) -> Float[Tensor, "b 3 r r"]:
        side = self.check_growth(growth).resolution
        pixels = self.layers(torch.cat([truncation * z, self.read_caption(text.pooled)], dim=1))
        return at_least_float32(pixels).unflatten(1, (3, side, side))
