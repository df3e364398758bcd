"""How two sets of features cover each other, by balls around images that reach to the k-th neighbour.

Axes: n and m images, f features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from imagen_pl.errors import UserError

_ROWS = 1024


@dataclass(frozen=True)
class Coverage:
    """How the images of one set, the pictures, lie in the balls around the images of another set.

    hits: mean number of balls that a picture lies in.
    covered: share of the pictures that lie in at least one ball.
    filled: share of the balls that hold at least one picture.
    """

    hits: float
    covered: float
    filled: float


def precision_and_recall(
    real: Float[Tensor, "n f"], fake: Float[Tensor, "m f"], neighbours: int = 3
) -> tuple[float, float]:
    """Improved precision and recall, 0 to 1 (arXiv:1904.06991, eq. 1 and 2).

    Precision is the share of generated images that lie in a ball around a real one, and recall the share of
    real images that lie in a ball around a generated one. The ball around an image reaches to its k-th
    nearest neighbour in the same set.

    Raises:
        UserError: either set holds no more than `neighbours` images.
    """
    return (
        coverage(centres=real, pictures=fake, neighbours=neighbours).covered,
        coverage(centres=fake, pictures=real, neighbours=neighbours).covered,
    )


def density_and_coverage(
    real: Float[Tensor, "n f"], fake: Float[Tensor, "m f"], neighbours: int = 5
) -> tuple[float, float]:
    """Density and coverage (arXiv:2002.09797, eq. 3 and 4).

    Density is the mean number of balls around real images that a generated one lies in, divided by k: above 1
    if generated images crowd together. Coverage is the share of real images whose ball holds a generated
    one, 0 to 1. Unlike precision and recall, both are robust to outliers.

    Raises:
        UserError: there are no more than `neighbours` real images.
    """
    found = coverage(centres=real, pictures=fake, neighbours=neighbours)
    return found.hits / neighbours, found.filled


def coverage(*, centres: Float[Tensor, "n f"], pictures: Float[Tensor, "m f"], neighbours: int) -> Coverage:
    """How `pictures` lie in the balls around `centres`, in float64, a block of rows at a time.

    Raises:
        UserError: there are no more than `neighbours` centres, or no pictures.
    """
    if len(centres) <= neighbours or not len(pictures):
        raise UserError(
            f"{len(centres)} and {len(pictures)} images are too few: more than {neighbours} are needed in "
            "the first set, and at least one in the second"
        )
    a, b = centres.double(), pictures.double()
    inside = torch.zeros(len(b), dtype=torch.int64, device=b.device)
    filled = 0
    for rows in a.split(_ROWS):
        # The nearest image of the set is the image itself, so one more neighbour is needed.
        radii = _distances(rows, a).kthvalue(neighbours + 1, dim=1).values
        hit = _distances(rows, b) <= radii[:, None]
        inside += hit.sum(0)
        filled += int(hit.any(1).sum())
    return Coverage(float(inside.double().mean()), float((inside > 0).double().mean()), filled / len(a))


def nearest(pictures: Float[Tensor, "n f"], others: Float[Tensor, "m f"]) -> Float[Tensor, " n"]:
    """Distance of each picture to the nearest of the others, float64."""
    b = others.double()
    return torch.cat([_distances(rows, b).amin(1) for rows in pictures.double().split(_ROWS)])


def _distances(a: Float[Tensor, "n f"], b: Float[Tensor, "m f"]) -> Float[Tensor, "n m"]:
    found = torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")
    # Equal images get a small distance by rounding: the matrix product is less exact than differences, but
    # much faster.
    floor = 1e-6 * b.square().sum(1).mean().sqrt()
    return found.masked_fill(found < floor, 0)
