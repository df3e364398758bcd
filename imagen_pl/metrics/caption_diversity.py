"""How varied the images of one caption are, compared with its real images, from features.

Axes: p captions, k generated images a caption, n real images a caption, f features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from imagen_pl.metrics.precision_recall import density_and_coverage, precision_and_recall

Features = Float[Tensor, "p k f"]


@dataclass(frozen=True)
class CaptionDiversity:
    """Means over captions, each with the standard error of that mean.

    diversity: mean distance between two generated images of a caption, divided by that between two real ones:
        0 if all are the same, 1 if they vary as much as real ones.
    latent_share: share of the generated images' variance that lies within captions, 0 to 1: what the latent
        decides and the caption does not.
    precision: share of a caption's generated images that lie in a ball around one of its real images.
    coverage: share of a caption's real images whose ball holds one of its generated images.
    """

    captions: int
    diversity: float
    diversity_error: float
    latent_share: float
    precision: float
    precision_error: float
    coverage: float
    coverage_error: float


def caption_diversity(fake: Features, real: Float[Tensor, "p n f"], neighbours: int = 3) -> CaptionDiversity:
    """Compare the generated images of each caption with its real images.

    Args:
        fake: at least 2 generated images of each caption.
        real: more than `neighbours` real images of each.
        neighbours: of the balls of precision (arXiv:1904.06991) and coverage (arXiv:2002.09797), which are
            computed caption by caption.
    """
    ratios = _spread(fake) / _spread(real).clamp_min(1e-12)
    pairs = list(zip(fake, real, strict=True))
    precision = torch.tensor([precision_and_recall(r, g, neighbours)[0] for g, r in pairs])
    coverage = torch.tensor([density_and_coverage(r, g, neighbours)[1] for g, r in pairs])
    return CaptionDiversity(
        len(fake),
        *_mean_and_error(ratios),
        latent_share(fake),
        *_mean_and_error(precision),
        *_mean_and_error(coverage),
    )


def latent_share(images: Features) -> float:
    """Variance within captions, divided by the whole variance: 0 if the latent changes nothing.

    Unbiased, as in one-way analysis of variance: without it a few images a caption would seem to share
    their captions' variance.
    """
    x = images.double()
    p, k = x.shape[:2]
    means = x.mean(1)
    within = (x - means[:, None]).square().sum() / (p * (k - 1))
    between = (means - means.mean(0)).square().sum() / (p - 1) - within / k
    return float(within / (within + between.clamp_min(0)).clamp_min(1e-12))


def _spread(images: Features) -> Float[Tensor, " p"]:
    """Mean distance between two images of each caption."""
    return torch.stack([torch.pdist(each.double()).mean() for each in images])


def _mean_and_error(values: Float[Tensor, " p"]) -> tuple[float, float]:
    x = values.double()
    return float(x.mean()), float(x.std(correction=1) / len(x) ** 0.5)
