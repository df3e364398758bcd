"""DCGAN's generator (arXiv:1511.06434, section 3), with captions as in GAN-CLS (arXiv:1605.05396)."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.generators.base import Generator
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.widths import check_channels
from imagen_pl.types import Growth, TextFeatures


class DCGANGenerator(Generator):
    """Transposed convolutions of stride 2 from 4 px up, with batch normalization and ReLUs; tanh at the end.

    Args:
        channels: feature maps at each resolution, smallest first, each twice the one before. The last are the
            image's three: {4: 512, 8: 256, 16: 128, 32: 3}.
        text_dim: size of the text encoder's vectors.
        latent_dim: size of the latent z.
        caption_dim: size to which the caption's vector is reduced before it joins the latent (GAN-CLS,
            section 4.1).
    """

    def __init__(
        self, channels: dict[int, int], text_dim: int = 384, latent_dim: int = 100, caption_dim: int = 128
    ) -> None:
        super().__init__()
        check_channels(channels, rgb_last=True)
        self.resolutions, self.latent_dim, self.text_dim = (list(channels)[-1],), latent_dim, text_dim
        self.read_caption = nn.Sequential(nn.Linear(text_dim, caption_dim), nn.LeakyReLU(0.2))
        widths = list(channels.values())
        start = next(iter(channels))
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent_dim + caption_dim, widths[0], start, bias=False)]
        for before, after in itertools.pairwise(widths):
            layers += [nn.BatchNorm2d(before), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=after == 3))
        self.layers = nn.Sequential(*layers, nn.Tanh())
        initialise_dcgan(self.layers)

    def forward(  # type: ignore[override]  # no guidance
        self,
        z: Float[Tensor, "b z"],
        text: TextFeatures,
        growth: Growth | None = None,
        truncation: float = 1.0,
    ) -> Float[Tensor, "b 3 r r"]:
        self.check_growth(growth)
        x = torch.cat([truncation * z, self.read_caption(text.pooled)], dim=1)
        return at_least_float32(self.layers(x[:, :, None, None]))


def initialise_dcgan(network: nn.Module) -> None:
    """Weights from N(0, 0.02), gains of batch normalization from N(1, 0.02) (section 4 and its code)."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, std=0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, mean=1.0, std=0.02)
