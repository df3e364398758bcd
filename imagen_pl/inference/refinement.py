"""Refinement: optimise the style of a picture until it shows what the generator's prior predicts.

On the emoji, twenty steps brought pictures nearer to the real images of their captions, measured with another
network of the same family, most of all after short trainings (benchmarks/RESULTS.md).

Axes: b batch, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.models.image_prior import ImagePrior
from imagen_pl.types import Growth, TextFeatures

# Of Adam; the entries of a style have a variance of 1.
_LEARNING_RATE = 0.05
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


def refinable(generator: Generator) -> tuple[StyleGenerator, ImagePrior]:
    """The generator and its prior.

    Raises:
        UserError: it has no prior, or one that was saved without its principal components.
    """
    if not isinstance(generator, StyleGenerator) or generator.prior is None:
        raise UserError(
            "this model's generator has no prior (configs/teacher/image_prior.yaml) to refine by: leave "
            "refine at 0"
        )
    generator.prior.check_components()
    return generator, generator.prior


def can_refine(generator: Generator) -> bool:
    """Whether `refinable` would give its prior; this reads no network."""
    prior = generator.prior if isinstance(generator, StyleGenerator) else None
    return prior is not None and prior.has_components


def refined(
    generator: StyleGenerator,
    prior: ImagePrior,
    style: Float[Tensor, "b style"],
    text: TextFeatures,
    growth: Growth,
    steps: int,
    on_step: Callable[[int], object] | None = None,
) -> Float[Tensor, "b _c h w"]:
    """Pictures of styles that are first optimised, each on its own, towards what the prior predicts.

    Latent optimisation as in StyleCLIP (arXiv:2103.17249, section 4), with the prior in place of CLIP.

    Args:
        generator: the generator; its weights must not require gradients.
        prior: predicts image features from captions, and compares pictures with them.
        style: where the optimisation starts.
        text: the captions.
        growth: the generator's stage of growth.
        steps: steps of Adam.
        on_step: called after each step with the batch size, for a progress bar.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors made in inference mode take no part in a backward pass, but copies do.
        text = TextFeatures(text.tokens.clone(), text.mask.clone(), text.pooled.clone())
        start = style.detach().clone()
        predicted = prior.predict(text.pooled)
        move = torch.zeros_like(start, requires_grad=True)
        mean, square = torch.zeros_like(start), torch.zeros_like(start)
        for step in range(1, steps + 1):
            images = generator.draw(_moved(start, move), text, growth)
            distance = prior.distance_to_prediction(images, predicted)
            (slope,) = torch.autograd.grad(distance.sum(), [move])
            adam_step(move, slope, mean, square, step, _LEARNING_RATE)
            if on_step is not None:
                on_step(len(style))
    with torch.no_grad():
        return generator.draw(_moved(start, move), text, growth)


@torch.no_grad()
def adam_step(
    move: Tensor, slope: Tensor, mean: Tensor, square: Tensor, step: int, learning_rate: float
) -> None:
    """One step of Adam (arXiv:1412.6980, algorithm 1), in place; `step` counts from 1.

    `torch.optim.Adam` gives the same numbers, but imports torch's compiler, which takes two seconds.
    """
    beta1, beta2 = _BETAS
    mean.lerp_(slope, 1 - beta1)
    square.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
    deviation = (square.sqrt() / (1 - beta2**step) ** 0.5).add_(_EPSILON)
    move.addcdiv_(mean, deviation, value=-learning_rate / (1 - beta1**step))


def _moved(start: Tensor, move: Tensor) -> Tensor:
    """The moved style at its old length: guidance makes styles longer or shorter than their variance of 1."""
    length = start.std(1, correction=0, keepdim=True)
    return length * F.layer_norm(start + move, (start.shape[1],))
