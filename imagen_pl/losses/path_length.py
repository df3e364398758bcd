"""Path length regularization (StyleGAN2, arXiv:1912.04958, section 3.2)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, LossTerm, PerSample
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.schedules import Schedule
from imagen_pl.types import Growth, TextFeatures


class PathLength(LossTerm):
    """A step in the style should change the image equally much everywhere and in all directions (eq. 4).

    (||J^T y|| - a)^2,    J = dG(w) / dw, y ~ N(0, I) / sqrt(h w), a the moving average of the lengths

    As in the authors' code, ||J^T y||^2 is the mean over the resolutions' styles, and not their sum.

    Computed in float32 on a part of the batch, with latents of its own.

    Args:
        generator_weight: factor in the generator's loss: a number (the paper's is 2), or a schedule of images
            seen.
        every: compute it at every nth generator step, n times as strong (lazy regularization, appendix B).
            The paper takes a separate optimizer step for it and scales learning rate and betas to make up for
            that. Here it is part of the usual step, so nothing has to be scaled.
        share: share of a batch that is generated for it, above 0 to 1.
        decay: by how much the moving average follows the mean length of a batch, 0 to 1.
        from_resolution: resolution, px, below which the term is skipped.
    """

    name = "path_length"

    def __init__(
        self,
        generator_weight: float | Schedule = 2.0,
        every: int = 4,
        share: float = 0.5,
        decay: float = 0.01,
        from_resolution: int = 4,
    ) -> None:
        for setting, value in (("share", share), ("decay", decay)):
            if not 0 < value <= 1:
                raise ValueError(f"PathLength.{setting} {value} must be above 0 and at most 1")
        if every < 1:
            raise ValueError(f"PathLength.every {every} must be 1 or more")
        super().__init__(0.0, generator_weight, from_resolution)
        self.generator_every, self.share, self.decay = every, share, decay
        self.mean_length: Tensor
        self.register_buffer("mean_length", torch.zeros(()))

    def check_generator(self, generator: Generator) -> None:
        _style_generator(generator)

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        if inputs.generator is None or inputs.latents is None:
            raise ValueError("PathLength generates images: it needs inputs.generator and inputs.latents")
        n = math.ceil(self.share * len(inputs.images))
        z = torch.randn_like(inputs.latents[:n])
        # The fused attention kernels have no second derivative.
        eager = torch.compiler.set_stance("force_eager")  # compiled blocks have none either
        with eager, torch.autocast(z.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            generator = _style_generator(inputs.generator)
            lengths = path_lengths(generator, z, inputs.text[:n].to(dtype=torch.float32), inputs.growth)
        with torch.no_grad():
            self.mean_length.lerp_(lengths.mean(), self.decay)
        self.note("mean", self.mean_length)
        return (lengths - self.mean_length).square()


def path_lengths(
    generator: StyleGenerator, z: Float[Tensor, "b z"], text: TextFeatures, growth: Growth
) -> PerSample:
    """||J^T y|| of each sample, for one random y each; it can be differentiated again."""
    style = generator.style(z, text)
    if not style.requires_grad:  # the mapping is frozen, as by blockwise training
        style = style.detach().requires_grad_()
    styles = style[:, None].expand(-1, len(generator.resolutions), -1)
    images = generator.draw(styles, text, growth)
    noise = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
    used = sum(resolution <= growth.resolution for resolution in generator.resolutions)
    (slope,) = torch.autograd.grad((images * noise).sum(), styles, create_graph=True)
    return (slope.square().sum((1, 2)) / used + 1e-12).sqrt()


def _style_generator(generator: Generator) -> StyleGenerator:
    if not isinstance(generator, StyleGenerator):
        raise UserError(
            f"model.losses: PathLength needs a generator with a style, StyleGenerator, not "
            f"{type(generator).__name__}: leave it out"
        )
    return generator
