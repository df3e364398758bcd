"""Styles moved until the picture shows what the generator's prior guesses of its caption.

On the emoji twenty steps brought pictures nearer to their real images, by another network of the same
family, most of all after short trainings (benchmarks/RESULTS.md).

Axes: b batch, r pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.models.image_prior import ImagePrior
from imagen_pl.types import Growth, TextFeatures

# Of Adam; a style's entries have a variance of 1.
_LEARNING_RATE = 0.05


def refinable(generator: Generator) -> tuple[StyleGenerator, ImagePrior]:
    """The generator and the prior that it is refined by.

    Raises:
        UserError: it has none, or one that cannot look at pictures.
    """
    if not isinstance(generator, StyleGenerator) or generator.prior is None:
        raise UserError(
            "this model's generator has no prior (configs/teacher/image_prior.yaml) to refine by: leave "
            "refine at 0"
        )
    generator.prior.check_can_look()
    return generator, generator.prior


def can_refine(generator: Generator) -> bool:
    """Whether `refinable` would give its prior; nothing is read for it."""
    prior = generator.prior if isinstance(generator, StyleGenerator) else None
    return prior is not None and prior.can_look


def refined(
    generator: StyleGenerator,
    prior: ImagePrior,
    style: Float[Tensor, "b style"],
    text: TextFeatures,
    growth: Growth,
    steps: int,
) -> Float[Tensor, "b 3 r r"]:
    """Pictures of styles that are moved first, each alone, towards what the prior guesses.

    Latent optimisation, as StyleCLIP does it by CLIP (arXiv:2103.17249, section 4).

    Args:
        generator: draws; its weights want no gradient.
        prior: says what should be seen, and how far a picture is from it.
        style: where to start.
        text: the captions.
        growth: how far the generator has grown.
        steps: of Adam.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # What inference mode has made takes no part in a backward pass, but a copy does.
        text = TextFeatures(text.tokens.clone(), text.mask.clone(), text.pooled.clone())
        start = style.detach().clone()
        move = torch.zeros_like(start, requires_grad=True)
        adam = torch.optim.Adam([move], lr=_LEARNING_RATE)
        for _ in range(steps):
            off = prior.cosine_distance(generator.draw(_moved(start, move), text, growth), text.pooled)
            (move.grad,) = torch.autograd.grad(off.sum(), [move])
            adam.step()
    with torch.no_grad():
        return generator.draw(_moved(start, move), text, growth)


def _moved(start: Tensor, move: Tensor) -> Tensor:
    """Still as long as it was: a style has variance 1, and guidance makes it longer or shorter."""
    length = start.std(1, correction=0, keepdim=True)
    return length * F.layer_norm(start + move, (start.shape[1],))
