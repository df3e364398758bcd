"""NoisyViews: its changes, their ranges, and its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.models.noisy_views import NoisyViews

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images() -> Tensor:
    return torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_noise_has_a_random_strength_in_each_image(images: Tensor) -> None:
    noise = NoisyViews(noise=0.6, blur=0, shift=0)(images, seed=1) - images
    deviations = noise.flatten(1).std(1)
    assert float(deviations.max()) < 0.7
    assert float(deviations.min()) < 0.1
    assert abs(float(deviations.mean()) - 0.3) < 0.05
    assert abs(float(noise.mean())) < 0.02


def test_blur_lowers_contrast_and_keeps_brightness(images: Tensor) -> None:
    blurred = NoisyViews(noise=0, blur=2.0, shift=0)(images, seed=1)
    assert (blurred.flatten(1).std(1) <= images.flatten(1).std(1)).all()
    torch.testing.assert_close(blurred.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=0.1, rtol=0)


def test_shift_moves_a_dot_by_at_most_its_share() -> None:
    dots = torch.zeros(64, 1, 16, 16)
    dots[:, :, 8, 8] = 1
    rows, columns = NoisyViews(noise=0, blur=0, shift=0.125)(dots, seed=1)[:, 0].nonzero()[:, 1:].T
    assert set(rows.tolist()) == set(columns.tolist()) == {6, 7, 8, 9, 10}


def test_probability_zero_and_amounts_of_zero_change_nothing(images: Tensor) -> None:
    assert torch.equal(NoisyViews(noise=0, blur=0, shift=0)(images), images)
    torch.testing.assert_close(NoisyViews(probability=0.0)(images), images)


def test_the_same_seed_gives_the_same_views(images: Tensor) -> None:
    views = NoisyViews()
    assert torch.equal(views(images, seed=3), views(images, seed=3))
    assert not torch.equal(views(images, seed=3), views(images, seed=4))


def test_gradients_reach_every_image_and_alpha_is_changed_too(images: Tensor) -> None:
    four = torch.cat([images, images[:, :1]], 1).requires_grad_()
    NoisyViews()(four).square().sum().backward()
    assert four.grad is not None
    assert four.grad.flatten(1).any(1).all()


@pytest.mark.parametrize("setting", [{"noise": -0.1}, {"blur": -1}, {"shift": 1.5}])
def test_amounts_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"NoisyViews\.{next(iter(setting))} .* must be"):
        NoisyViews(**setting)
