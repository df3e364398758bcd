"""PSNR and SSIM, against slow references in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from imagen_pl.metrics.fidelity import Fidelity, luma, psnr, ssim

pytestmark = pytest.mark.usefixtures("one_thread")


def images(count: int, seed: int) -> Tensor:
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, size=24, mode="bicubic") * 255).clamp(0, 255).byte()


def reference_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al., 2004, eq. 13, by loops over windows of 11 px that lie wholly inside."""
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = np.outer(window, window) / window.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(a.shape[0]):
        for top in range(a.shape[1] - 10):
            for left in range(a.shape[2] - 10):
                x = a[channel, top : top + 11, left : left + 11]
                y = b[channel, top : top + 11, left : left + 11]
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                cov = (weights * (x - mx) * (y - my)).sum()
                values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


def test_psnr_equals_its_definition() -> None:
    a, b = images(2, 0).double(), images(2, 1).double()
    expected = [
        20 * math.log10(255) - 10 * math.log10(float(((x - y) ** 2).mean()))
        for x, y in zip(a, b, strict=True)
    ]
    assert psnr(a, b).tolist() == pytest.approx(expected)
    assert psnr(a, a).tolist() == [100, 100]


def test_ssim_equals_the_written_out_windows() -> None:
    a, b = images(2, 0), images(2, 1)
    found = ssim(a.double(), b.double())
    expected = [reference_ssim(x.double().numpy(), y.double().numpy()) for x, y in zip(a, b, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert ssim(a.double(), a.double()).tolist() == pytest.approx([1, 1])


def test_scores_are_the_same_in_a_run_in_bfloat16() -> None:
    a, b = images(2, 0).double(), images(2, 1).double()
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssim(luma(a), luma(b))
    assert torch.equal(inside, ssim(luma(a), luma(b)))


def test_luma_of_white_black_and_primaries() -> None:
    colours = torch.tensor([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]).double()
    found = luma(colours[:, :, None, None]).flatten().tolist()
    assert found == pytest.approx([235, 16, 81.481, 144.553, 40.966], abs=1e-3)


def test_scores_are_means_over_all_images() -> None:
    metric = Fidelity()
    real, drawn = images(5, 0), images(5, 1)
    for rows in (slice(0, 3), slice(3, 5)):
        metric.update(real[rows], [""], real=True)
        metric.update(drawn[rows], [""], real=False)
    scores = metric.compute("")
    assert set(scores) == set(metric.scores)
    assert scores["psnr"] == pytest.approx(psnr(drawn.double(), real.double()).mean().item(), rel=1e-5)
    y = luma(drawn.double()), luma(real.double())
    assert scores["ssim_y"] == pytest.approx(ssim(*y).mean().item(), rel=1e-5)
    metric.reset()
    metric.update(real, [""], real=True)
    metric.update(real, [""], real=False)
    assert metric.compute("")["psnr"] == 100
