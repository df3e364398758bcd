"""Distances between two sets of features.

Axes: n and m images, f features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

# With fewer images than this, the Fréchet distance depends mostly on the sample size.
FEW = 2048
_ROWS = 2048


def frechet_distance(real: Float[Tensor, "n f"], fake: Float[Tensor, "m f"]) -> float:
    """Fréchet distance between Gaussians (arXiv:1706.08500, eq. 6), in float64.

    ||μ_1 - μ_2||² + tr(Σ_1 + Σ_2 - 2 (Σ_1 Σ_2)^½). It falls with the number of images: compare at equal
    numbers only. With fewer images than features, and X_2ᵀ X_2 = Σ_2, the trace of the root equals that of
    (X_2 Σ_1 X_2ᵀ)^½, a matrix with one row an image.
    """
    if len(real) < len(fake):
        real, fake = fake, real
    a, b = real.double(), fake.double()
    if len(b) > b.shape[1]:
        return frechet_distance_of_moments(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    gap = (a.mean(0) - b.mean(0)).square().sum()
    x, y = ((s - s.mean(0)) / (len(s) - 1) ** 0.5 for s in (a, b))
    product = y @ x.T
    overlap = torch.linalg.eigvalsh(product @ product.T).clamp(min=0).sqrt().sum()
    return float(gap + x.square().sum() + y.square().sum() - 2 * overlap)


def frechet_distance_of_moments(
    mean: Float[Tensor, " f"], covariance: Float[Tensor, "f f"],
    other_mean: Float[Tensor, " f"], other_covariance: Float[Tensor, "f f"],
) -> float:  # fmt: skip
    """Fréchet distance from means and covariances, float64, for sets that do not fit in memory.

    tr (Σ_1 Σ_2)^½ = tr (R Σ_2 R)^½ with R = Σ_1^½, so that every matrix is symmetric. The eigenvalues of
    Σ_1 Σ_2 itself take minutes instead of seconds if there are fewer images than features.
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = root @ other_covariance @ root
    overlap = torch.linalg.eigvalsh((cross + cross.T) / 2).clamp(min=0).sqrt().sum()
    gap = (mean - other_mean).square().sum()
    return float(gap + covariance.trace() + other_covariance.trace() - 2 * overlap)


def kernel_distance(real: Float[Tensor, "n f"], fake: Float[Tensor, "m f"]) -> float:
    """Squared maximum mean discrepancy, unbiased (arXiv:1801.01401, eq. 4), in float64.

    The kernel is (x·y / f + 1)³. The sets may differ in size. Two samples of the same distribution have a
    distance of 0 on average, so the result may be slightly negative.
    """
    a, b = real.double(), fake.double()

    def off_diagonal_mean(x: Tensor) -> Tensor:
        own = ((x * x).sum(1) / x.shape[1] + 1) ** 3
        return (_sum(_cubic, x, x) - own.sum()) / (len(x) * (len(x) - 1))

    between = _sum(_cubic, a, b) / (len(a) * len(b))
    return float(off_diagonal_mean(a) + off_diagonal_mean(b) - 2 * between)


def gaussian_discrepancy(
    real: Float[Tensor, "n f"], fake: Float[Tensor, "m f"], sigma: float = 10.0
) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, biased, times 1,000, in float64.

    The kernel is exp(-||x - y||² / 2σ²) on features normalised to length one; pairs of an image with itself
    are included. With features of CLIP's ViT-L/14 at 336 px and σ = 10 it is CMMD (arXiv:2401.09603,
    section 4).
    """
    a, b = (torch.nn.functional.normalize(x.double(), dim=1) for x in (real, fake))

    def gaussian(x: Tensor, y: Tensor) -> Tensor:
        # For unit vectors ||x - y||² = 2 - 2 x·y.
        return torch.exp((x @ y.T - 1) / sigma**2)

    def mean(x: Tensor, y: Tensor) -> Tensor:
        return _sum(gaussian, x, y) / (len(x) * len(y))

    return 1000 * float(mean(a, a) + mean(b, b) - 2 * mean(a, b))


def _cubic(a: Float[Tensor, "n f"], b: Float[Tensor, "m f"]) -> Float[Tensor, "n m"]:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _sum(
    kernel: Callable[[Tensor, Tensor], Tensor], a: Float[Tensor, "n f"], b: Float[Tensor, "m f"]
) -> Float[Tensor, ""]:
    """Sum of the kernel over all pairs, in blocks of rows, since n m values may not fit in memory."""
    return torch.stack([kernel(rows, b).sum() for rows in a.split(_ROWS)]).sum()
