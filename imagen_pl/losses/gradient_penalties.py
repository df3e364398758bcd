"""Gradient penalties on the discriminator, in float32, one value a sample.

Penalties are summed over pixels, so a good weight grows with the resolution: about 75 times for 16
times the pixels (R3GAN's settings). `PerResolution` interpolates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, exp, log

import torch
from jaxtyping import Float
from torch import Tensor

from imagen_pl.schedules import Schedule
from imagen_pl.types import TextFeatures

Images = Float[Tensor, "b c h w"]
PerSample = Float[Tensor, " b"]


# The discriminator as a function for the penalties: from images and their captions to logits.
LogitFn = Callable[[Images, TextFeatures], Float[Tensor, "b k"]]


@dataclass
class PerResolution:
    """A weight that follows a power law through two points.

    Args:
        low_resolution: first point, px.
        low: weight there, more than 0.
        high_resolution: second point, px.
        high: weight there, more than 0.
    """

    low_resolution: int
    low: float
    high_resolution: int
    high: float

    def __call__(self, resolution: int) -> float:
        share = log(resolution / self.low_resolution) / log(self.high_resolution / self.low_resolution)
        return exp(log(self.low) * (1 - share) + log(self.high) * share)


class Penalty(ABC):
    """A term that keeps the discriminator smooth.

    Args:
        weight: factor; a number, or `PerResolution`. A stage's `penalty_weight` overrides it.
        every: apply the penalty at every nth discriminator step, n times as strong (lazy regularisation,
            arXiv:1912.04958, appendix B).
        share: share of a batch that is penalized, more than 0 and at most 1. The expected penalty stays the
            same, and half the images take half the time.
        schedule: factor on the weight by images seen, such as Cosine from 1 to 0.1 (R3GAN's annealing); None
            keeps the weight.
    """

    name: str
    compares: bool = False  # whether it compares logits, which must then come from equal augmentations

    def __init__(
        self,
        weight: float | PerResolution,
        every: int = 1,
        share: float = 1.0,
        schedule: Schedule | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every {every} must be 1 or more")
        if not 0 < share <= 1:
            raise ValueError(f"{type(self).__name__}.share {share} must be more than 0 and at most 1")
        self.weight, self.every, self.share, self.schedule = weight, every, share, schedule

    def count(self, images: int) -> int:
        """How many images of a batch are penalized: the first ones, since its order is random."""
        return ceil(images * self.share)

    def weight_at(self, resolution: int, images_seen: int = 0) -> float:
        weight = self.weight(resolution) if callable(self.weight) else self.weight
        return weight if self.schedule is None else weight * self.schedule(images_seen)

    @abstractmethod
    def __call__(self, logit_fn: LogitFn, real: Images, fake: Images, text: TextFeatures) -> PerSample:
        """The unweighted penalty of each sample."""


class R1(Penalty):
    """1/2 ||grad_x D(x)||^2 on real images (arXiv:1801.04406, eq. 9)."""

    name = "r1"

    def __call__(self, logit_fn: LogitFn, real: Images, fake: Images, text: TextFeatures) -> PerSample:
        return gradient(lambda x: logit_fn(x, text), real).flatten(1).square().sum(1) / 2


class R2(Penalty):
    """1/2 ||grad_x D(x)||^2 on generated images (arXiv:1801.04406, eq. 10; needed by R3GAN)."""

    name = "r2"

    def __call__(self, logit_fn: LogitFn, real: Images, fake: Images, text: TextFeatures) -> PerSample:
        return gradient(lambda x: logit_fn(x, text), fake).flatten(1).square().sum(1) / 2


class FiniteDifference(Penalty):
    """1/2 ((D(x + sigma e) - D(x)) / sigma)^2 with e ~ N(0, I): R1 or R2 without a gradient of the images.

    Its mean over e is 1/2 ||grad_x D(x)||^2 + O(sigma^2), for one e a sample (arXiv:2509.24935,
    arXiv:2511.22475). It needs no second derivative, so compiled blocks, fused attention and frozen
    networks can be penalized, and costs two forward passes and one backward pass.

    Args:
        sigma: standard deviation of the noise; pixels are -1 to 1. More than 0.
        weight: see Penalty, and so for `every`, `share` and `schedule`.
    """

    compares = True

    def __init__(
        self,
        weight: float | PerResolution,
        every: int = 1,
        share: float = 1.0,
        schedule: Schedule | None = None,
        sigma: float = 0.01,
    ) -> None:
        super().__init__(weight, every, share, schedule)
        if sigma <= 0:
            raise ValueError(f"{type(self).__name__}.sigma {sigma} must be more than 0")
        self.sigma = sigma

    def penalty(self, logit_fn: LogitFn, images: Images, text: TextFeatures) -> PerSample:
        moved = images + self.sigma * torch.randn_like(images)
        slope = (logit_fn(moved, text) - logit_fn(images, text)).mean(1) / self.sigma
        return slope.square() / 2


class FiniteDifferenceR1(FiniteDifference):
    """R1 by finite differences: 1/2 ((D(x + sigma e) - D(x)) / sigma)^2 on real images, e ~ N(0, I).

    Args:
        sigma: standard deviation of the noise; pixels are -1 to 1. More than 0.
        weight: as of R1, and so are `every`, `share` and `schedule`.
    """

    name = "r1"

    def __call__(self, logit_fn: LogitFn, real: Images, fake: Images, text: TextFeatures) -> PerSample:
        return self.penalty(logit_fn, real, text)


class FiniteDifferenceR2(FiniteDifference):
    """R2 by finite differences: the same on generated images.

    Args:
        sigma: standard deviation of the noise; pixels are -1 to 1. More than 0.
        weight: as of R2, and so are `every`, `share` and `schedule`.
    """

    name = "r2"

    def __call__(self, logit_fn: LogitFn, real: Images, fake: Images, text: TextFeatures) -> PerSample:
        return self.penalty(logit_fn, fake, text)


class WassersteinPenalty(Penalty):
    """(||grad_x D(x)|| - 1)^2 between real and generated images (WGAN-GP, arXiv:1704.00028, eq. 3)."""

    name = "wgan_gp"

    def __call__(self, logit_fn: LogitFn, real: Images, fake: Images, text: TextFeatures) -> PerSample:
        share = torch.rand(real.shape[0], 1, 1, 1, device=real.device, dtype=real.dtype)
        slope = gradient(lambda x: logit_fn(x, text), torch.lerp(real, fake, share)).flatten(1)
        return (slope.square().sum(1) + 1e-12).sqrt().sub(1).square()


class MatchingAwarePenalty(Penalty):
    """||grad_(x, text) D(x, text)||^6 on real, matching pairs (DF-GAN, arXiv:2008.05865, eq. 1; weight 2)."""

    name = "ma_gp"

    def __call__(self, logit_fn: LogitFn, real: Images, fake: Images, text: TextFeatures) -> PerSample:
        pooled = text.pooled.detach().to(real.dtype).requires_grad_()
        images = real.detach().requires_grad_()
        logits = logit_fn(images, TextFeatures(text.tokens, text.mask, pooled))
        slopes = torch.autograd.grad(_total(logits), [images, pooled], create_graph=True)
        # The sixth power of the norm is computed as the cube of its square, to avoid a root at zero.
        return sum(slope.flatten(1).square().sum(1) for slope in slopes).pow(3)  # type: ignore[union-attr]


def gradient(logit_fn: Callable[[Images], Tensor], images: Images) -> Images:
    """grad_x of each sample's mean logit; the result can be differentiated again."""
    images = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(_total(logit_fn(images)), images, create_graph=True)
    return slope


def _total(logits: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """The sum over samples; samples do not interact, so its gradient holds each sample's own gradient."""
    return logits.mean(1).sum()
