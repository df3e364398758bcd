"""An upscaler with random weights."""

from __future__ import annotations

import torch

from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.inference.upscaling import Upscaler
from imagen_pl.models.generators.upsampler import Upsampler
from imagen_pl.types import Growth
from tests.helpers.fakes import TinyText
from tests.helpers.networks import awaken


def random_upscaler() -> Upscaler:
    """Enlarges four times. No layer is zero, so that a seam would show."""
    torch.manual_seed(0)
    generator = Upsampler(32, 4, [8, 8], blocks=1, text_dim=16, embedding_dim=8)
    awaken(generator)
    with torch.no_grad():
        generator.to_rgb.weight.mul_(0.3)
    return Upscaler(TextToImage(generator, TinyText(), Growth(32), {}))
