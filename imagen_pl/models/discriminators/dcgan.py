"""DCGAN's discriminator (arXiv:1511.06434, section 3), with captions as in GAN-CLS (arXiv:1605.05396)."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.models.generators.dcgan import initialise_dcgan
from imagen_pl.models.layers.initialisation import activation
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.widths import check_channels
from imagen_pl.types import Growth, TextFeatures


class DCGANDiscriminator(Discriminator):
    """Convolutions of stride 2 down to the smallest map, with batch normalization and leaky ReLUs.

    The caption's vector is repeated at each position of the last map (GAN-CLS, section 4.1). Real and
    generated images are normalized separately, as the training step scores them in two batches. Gradient
    penalties cannot be used: they need images that are independent, and batch normalization mixes them.

    Args:
        channels: feature maps at each resolution, smallest first, each twice the one before. The last are the
            image's three: {4: 512, 8: 256, 16: 128, 32: 3}.
        text_dim: size of the text encoder's vectors.
        caption_dim: size to which the caption's vector is reduced.
    """

    penalizable = False
    why_not_penalizable = "normalizes over the batch, so that a score depends on several images"

    def __init__(self, channels: dict[int, int], text_dim: int = 384, caption_dim: int = 128) -> None:
        super().__init__()
        check_channels(channels, rgb_last=True)
        self.start, *_, resolution = channels
        widths = list(channels.values())
        self.resolutions, self.text_dim = (resolution,), text_dim
        self.map_channels = {self.start: widths[0]}
        self.final_dim = widths[0]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(reversed(widths)):
            first = not layers
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=first))
            layers += [activation()] if first else [nn.BatchNorm2d(after), activation()]
        self.layers = nn.Sequential(*layers)
        self.read_caption = nn.Sequential(nn.Linear(text_dim, caption_dim), activation())
        self.judge = nn.Sequential(
            nn.Conv2d(widths[0] + caption_dim, widths[0], 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            activation(),
            nn.Conv2d(widths[0], 1, self.start),
        )
        initialise_dcgan(self)

    def extract_features(
        self, images: Float[Tensor, "b 3 r r"], growth: Growth | None = None
    ) -> ImageFeatures:
        self.check_growth(images, growth)
        x = self.layers(images)
        return ImageFeatures({self.start: x}, x.mean((2, 3)))

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Float[Tensor, "b 1"]:
        x = features.maps[self.start]
        caption = self.read_caption(text.pooled).to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return at_least_float32(self.judge(torch.cat([x, caption], dim=1)).flatten(1))
