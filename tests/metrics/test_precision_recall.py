"""Precision, recall, density, coverage and the Gaussian discrepancy: by hand, by loops, by torch-fidelity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from imagen_pl.errors import UserError
from imagen_pl.metrics.distances import gaussian_discrepancy, kernel_distance
from imagen_pl.metrics.precision_recall import density_and_coverage, nearest, precision_and_recall

pytestmark = pytest.mark.usefixtures("one_thread")


def points(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)) + shift


# On a line, with one neighbour: real balls are 0±1, 1±1, 3±2 and 10±7.
REAL = torch.tensor([[0.0], [1.0], [3.0], [10.0]])


def test_scores_equal_hand_computed_values() -> None:
    fake = torch.tensor([[0.5], [4.5], [20.0], [-3.0]])  # balls of 3.5, 4, 15.5 and 3.5
    # 0.5 lies in two real balls, 4.5 in two (3±2, 10±7), 20 and -3 in none.
    assert precision_and_recall(REAL, fake, neighbours=1)[0] == 2 / 4
    assert precision_and_recall(REAL, fake, neighbours=1)[1] == 4 / 4
    assert density_and_coverage(REAL, fake, neighbours=1) == (4 / 4, 4 / 4)
    assert density_and_coverage(REAL, fake[:1], neighbours=1) == (2 / 1, 2 / 4)
    assert density_and_coverage(REAL, fake[2:], neighbours=1) == (0, 0)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_precision_and_recall_equal_torch_fidelitys(neighbours: int) -> None:
    real, fake = points(120, 0), points(90, 1, shift=0.8)
    theirs = prc_features_to_metric(
        fake.double(), real.double(), prc_neighborhood=neighbours, prc_batch_size=50, save_cpu_ram=False,
        verbose=False,
    )  # fmt: skip
    ours = precision_and_recall(real, fake, neighbours)
    assert ours == pytest.approx((theirs["precision"], theirs["recall"]))
    assert 0.1 < min(ours) < max(ours) < 1


def test_density_and_coverage_equal_a_loop() -> None:
    real, fake, k = points(60, 0).numpy(), points(40, 1, shift=0.5).numpy(), 5
    radii = [sorted(float(np.linalg.norm(x - y)) for y in real)[k] for x in real]
    hits = [[np.linalg.norm(x - y) <= r for y in fake] for x, r in zip(real, radii, strict=True)]
    expected = (np.sum(hits) / (k * len(fake)), np.mean(np.any(hits, axis=1)))
    ours = density_and_coverage(torch.from_numpy(real), torch.from_numpy(fake), k)
    assert ours == pytest.approx(expected)


def test_equal_images_have_distance_zero() -> None:
    """Also far from the origin, where a product of matrices is not exact."""
    images = points(50, 0, shift=300.0)
    assert nearest(images, images).max() == 0
    # All images are equal: every ball has radius 0 and contains its own centre.
    same = images[:1].repeat(9, 1)
    assert precision_and_recall(same, same) == (1, 1)
    assert precision_and_recall(same, same + 1) == (0, 0)


def test_a_copy_of_one_image_has_precision_and_no_recall() -> None:
    real = points(80, 0)
    precision, recall = precision_and_recall(real, real[:1].repeat(80, 1))
    density, coverage = density_and_coverage(real, real[:1].repeat(80, 1))
    assert precision == 1
    assert recall <= 2 / 80
    assert density > 0
    assert coverage < 0.2


def test_scores_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = points(50, 0), points(40, 1, shift=0.5)
    whole = (*precision_and_recall(real, fake), *density_and_coverage(real, fake))
    monkeypatch.setattr("imagen_pl.metrics.precision_recall._ROWS", 7)
    assert (*precision_and_recall(real, fake), *density_and_coverage(real, fake)) == whole
    distances = [kernel_distance(real, fake), gaussian_discrepancy(real, fake)]
    monkeypatch.setattr("imagen_pl.metrics.distances._ROWS", 7)
    parted = [kernel_distance(real, fake), gaussian_discrepancy(real, fake)]
    assert parted == pytest.approx(distances, rel=1e-9)


def test_too_few_images_raise() -> None:
    with pytest.raises(UserError, match="4 and 4 images are too few: more than 5 are needed"):
        density_and_coverage(REAL, REAL)
    with pytest.raises(UserError, match="4 and 0 images are too few"):
        density_and_coverage(REAL, REAL[:0], neighbours=1)


@pytest.mark.parametrize("sigma", [0.5, 10.0])  # the second makes CMMD
def test_gaussian_discrepancy_equals_a_loop(sigma: float) -> None:
    a, b = (x.double().numpy() for x in (points(12, 0), points(9, 1, shift=1.0)))

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        gap = x / np.linalg.norm(x) - y / np.linalg.norm(y)
        return math.exp(-float(gap @ gap) / (2 * sigma**2))

    def mean(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.mean([kernel(x, y) for x in p for y in q]))

    expected = 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))
    ours = gaussian_discrepancy(torch.from_numpy(a), torch.from_numpy(b), sigma=sigma)
    assert ours == pytest.approx(expected, rel=1e-6)
    assert gaussian_discrepancy(torch.from_numpy(a), torch.from_numpy(a)) == pytest.approx(0, abs=1e-9)
