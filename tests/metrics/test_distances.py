"""Fréchet and kernel distance of features, against slow references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imagen_pl.metrics.distances import frechet_distance, frechet_distance_of_moments, kernel_distance
from tests.helpers.metrics import frechet_by_scipy, kernel_by_loop


def features_of(count: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.standard_normal((count, dim)) @ draw.standard_normal((dim, dim)) + shift


@pytest.mark.parametrize(("n", "m"), [(50, 40), (40, 50), (200, 6), (6, 200)])
def test_frechet_distance_equals_scipys(n: int, m: int) -> None:
    a, b = features_of(n, 6, seed=0), features_of(m, 6, seed=1, shift=0.5)
    expected = frechet_by_scipy(a, b)
    assert expected > 1
    ours = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert ours == pytest.approx(expected, rel=1e-7)
    moments = [x for s in (a, b) for x in (torch.from_numpy(s.mean(0)), torch.from_numpy(np.cov(s.T)))]
    assert frechet_distance_of_moments(*moments) == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_of_gaussians_known_in_closed_form() -> None:
    """For covariances that are multiples of one another: (a - b)² tr Σ + ||Δμ||²."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((100, 5))
    a, b = torch.from_numpy(2 * x), torch.from_numpy(5 * x + 1)
    gap = (a.mean(0) - b.mean(0)).square().sum()
    expected = float(9 * torch.from_numpy(np.cov(x.T)).trace() + gap)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_is_right_with_fewer_images_than_features() -> None:
    """Covariances then lack full rank, where scipy's root is inexact and slow: compare in the plane."""
    a, b = features_of(8, 100, seed=0), features_of(7, 100, seed=1)
    plane = np.linalg.svd(np.concatenate([a, b]), full_matrices=False)[2]
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    moments = [t for s in (a, b) for t in (torch.from_numpy(s.mean(0)), torch.from_numpy(np.cov(s.T)))]
    by_moments = frechet_distance_of_moments(*moments)
    assert frechet_distance(x, y) == pytest.approx(by_moments, rel=1e-5)
    assert frechet_distance(x, y) == pytest.approx(frechet_by_scipy(a @ plane.T, b @ plane.T), rel=1e-3)


@pytest.mark.parametrize(("n", "m"), [(12, 12), (12, 7), (7, 12)])
def test_kernel_distance_equals_a_loop(n: int, m: int) -> None:
    a, b = features_of(n, 4, seed=0), features_of(m, 4, seed=1, shift=0.3)
    ours = kernel_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert ours == pytest.approx(kernel_by_loop(a, b), rel=1e-10)


def test_kernel_distance_has_no_bias() -> None:
    """Over many samples of one distribution it is 0 on average, and so sometimes negative."""
    draw = np.random.default_rng(0)
    found = [
        kernel_distance(*(torch.from_numpy(draw.standard_normal((10, 4))) for _ in range(2)))
        for _ in range(300)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / 300**0.5
    assert min(found) < 0 < max(found)
