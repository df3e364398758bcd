"""Variations of a picture: the same caption with latents near its own.

Axes: b batch, z latent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.inference.sampling_options import check_guidance, check_truncation
from imagen_pl.models.latents import latents


def near_latents(latent_dim: int, seed: int, count: int, amount: float) -> Float[Tensor, "b z"]:
    """Latents near that of a seed, as long as others are on average.

    z_k = sqrt(1 - a^2) z + a e_k, with a the amount and e_k standard normal.

    Args:
        latent_dim: their size.
        seed: of the latent z, the first of the result.
        count: how many, z among them.
        amount: 0 for the same latent, 1 for independent ones.
    """
    own = latents([0], seed, latent_dim)
    others = latents(range(1, count), seed, latent_dim) if count > 1 else own[:0]
    return torch.cat([own, (1 - amount**2) ** 0.5 * own + amount * others])


def variations(
    model: TextToImage,
    prompt: str,
    seed: int,
    count: int = 8,
    amount: float = 0.4,
    truncation: float = 1.0,
    guidance: float = 1.0,
    refine: int | None = None,
    on_step: Callable[[int], object] | None = None,
) -> list[Image.Image]:
    """The picture of a prompt and a seed, as `TextToImage.sample` draws it, and others near it.

    Args:
        model: draws them.
        prompt: of all pictures.
        seed: of the first.
        count: number of pictures, the first among them.
        amount: 0 to 1; more is farther from the first picture.
        truncation: as of `TextToImage.sample`, as are guidance, refine and on_step.

    Raises:
        UserError: a number is out of range.
    """
    if count < 1:
        raise UserError(f"the number of variations {count} must be 1 or more")
    if not 0 <= amount <= 1:
        raise UserError(f"the amount of variation {amount} is not between 0 and 1")
    check_truncation(truncation)
    check_guidance(guidance)
    steps = model.refine_steps(refine)
    z = near_latents(model.generator.latent_dim, seed, count, amount)
    pictures = []
    for part in z.split(model.at_once):
        text = model.text_encoder.encode([prompt] * len(part), model.device)
        pictures += model.pictures(part.to(model.device), text, truncation, guidance, steps, on_step)
    return pictures
