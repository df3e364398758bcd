"""A generator loss for captions interpolated between those of the batch, which have no training image.

Axes: b batch, n images, f features of the backbone, d targets (the same), k principal components, h w pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import (
    LossInputs,
    LossTerm,
    PerSample,
    check_draws_captions,
    check_share,
    check_size,
)
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.kernel_ridge import KernelRidge, principal
from imagen_pl.models.pretrained.backbones import Backbone
from imagen_pl.schedules import Schedule
from imagen_pl.types import TextFeatures


class InterpolatedCaptionLoss(LossTerm):
    """Images of interpolated captions should have the features that a regression predicts for them.

    1 - cos(features(G(z, t)), predicted(t))    with t between two captions, as in mixup (arXiv:1710.09412)

    The other losses need a real image, which an interpolated caption does not have. CLIP guidance would
    compare image and caption by a dual encoder (StyleGAN-T, arXiv:2301.09515, section 3.3). Here it is kernel
    ridge regression from captions to a frozen network's features, fitted on the training set before the
    first batch.

    Args:
        backbone: the frozen network. The model must not be scored with the same one.
        captions: how many training captions the regression uses, spread over the set.
        text_dim: size of the text encoder's vectors.
        seen_dim: number of principal components of the network's features that are compared, each divided by
            the square root of its standard deviation.
        sharpness: inverse width of the kernel; a larger one gives more weight to the nearest captions.
        ridge: the regression's regularisation.
        generator_weight: factor in the generator's loss: a number, or a schedule of images seen.
        share: images generated each step, as a share of the batch, above 0 and at most 1. Each caption is
            interpolated between two of the same process and micro-batch, one of which may be ""; a batch of
            one caption is used unchanged.
        from_resolution: resolution, px, below which the term is skipped; features of small images carry
            little information, and the regression was fitted on images of full size.
    """

    name = "interpolated_captions"

    def __init__(
        self,
        backbone: Backbone,
        captions: int = 4096,
        text_dim: int = 384,
        seen_dim: int = 256,
        sharpness: float = 4.0,
        ridge: float = 2.0,
        generator_weight: float | Schedule = 1.0,
        share: float = 0.25,
        from_resolution: int = 32,
    ) -> None:
        check_share(self, share)
        super().__init__(0.0, generator_weight, from_resolution)
        self.regression = FeatureRegression(backbone, captions, text_dim, seen_dim, sharpness, ridge)
        self.share = share

    def check_generator(self, generator: Generator) -> None:
        check_draws_captions(self, generator)

    def check(self, discriminator: Discriminator) -> None:
        expected = discriminator.text_dim
        check_size(self, "text_dim", self.regression.text_dim, expected, "the discriminator's text_dim")

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        if inputs.generator is None or inputs.latents is None:
            raise ValueError(
                "InterpolatedCaptionLoss generates images: it needs inputs.generator and inputs.latents"
            )
        number, text = max(1, round(self.share * len(inputs.text))), inputs.text
        between = mixed(text[:number], text.roll()[:number])
        images = inputs.generator(inputs.latents[:number], between, inputs.growth)
        return self.regression.cosine_distance(images, between.pooled)


class FeatureRegression(KernelRidge):
    """Kernel ridge regression from captions to principal components of a frozen network's features."""

    configured_by = "InterpolatedCaptionLoss"

    def targets(self, images: Float[Tensor, "b _c h w"], means: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        return means.float()

    def fit_weights(
        self, targets: Float[Tensor, "n d"], kernel: Float[Tensor, "n n"], factor: Float[Tensor, "n n"]
    ) -> Float[Tensor, "n k"]:
        centre = targets.mean(0)
        directions = principal(targets - centre, self.seen_dim)
        deviation = ((targets - centre) @ directions).std(0, correction=0)
        # Without the scaling the first few components would dominate. With few images, the deviation of some
        # components is rounding error only: they are set to 0.
        significant = deviation > 1e-4 * deviation.max()
        directions = directions * torch.where(significant, deviation, torch.inf).rsqrt()
        self.set_components(centre, directions)
        fitted = torch.cholesky_solve((targets - centre) @ directions, factor)
        return F.pad(fitted, (0, self.seen_dim - directions.shape[1]))


def mixed(one: TextFeatures, other: TextFeatures) -> TextFeatures:
    """Captions at a random place between two: interpolated and normalised pooled vectors, tokens of both."""
    place = torch.rand(len(one), 1, device=one.pooled.device)
    pooled = torch.lerp(one.pooled, other.pooled, place)
    pooled = pooled * pooled.square().mean(1, keepdim=True).clamp_min(1e-12).rsqrt()
    return TextFeatures(
        torch.cat([one.tokens, other.tokens], dim=1), torch.cat([one.mask, other.mask], dim=1), pooled
    )
