"""Gradient penalties: their values, and their own gradients checked in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from imagen_pl.losses.gradient_penalties import (
    R1,
    R2,
    FiniteDifferenceR1,
    FiniteDifferenceR2,
    Images,
    MatchingAwarePenalty,
    Penalty,
    PerResolution,
    WassersteinPenalty,
)
from imagen_pl.schedules import Linear
from imagen_pl.types import Growth, TextFeatures
from tests.helpers.networks import awaken, small_discriminator, text_features

pytestmark = pytest.mark.usefixtures("one_thread")
PENALTIES = [
    R1(1.0),
    R2(1.0),
    FiniteDifferenceR1(1.0),
    FiniteDifferenceR2(1.0),
    WassersteinPenalty(1.0),
    MatchingAwarePenalty(1.0),
]
by_name = pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: type(penalty).__name__)


def _images(b: int, side: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(b, 3, side, side, generator=draw, dtype=torch.float64)


def _check_twice(
    penalty: Penalty, network: nn.Module, real: Images, fake: Images, text: TextFeatures
) -> None:
    """First and second derivatives of the penalty are correct."""
    names = [name for name, _ in network.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in network.parameters()]

    def value(*weights: Tensor) -> Tensor:
        torch.manual_seed(0)  # of the Wasserstein penalty's places and of the noise of finite differences
        chosen = dict(zip(names, weights, strict=True))

        def logits(images: Images, text: TextFeatures) -> Tensor:
            return torch.func.functional_call(network, chosen, (images, text))

        return penalty(logits, real, fake, text)

    # The fast mode compares along random directions: the slow one would take minutes here.
    assert torch.autograd.gradcheck(value, weights, fast_mode=True)
    assert torch.autograd.gradgradcheck(value, weights, fast_mode=True)


class SmoothJudge(nn.Module):
    """Two heads of a tanh network on pixels and the pooled text."""

    def __init__(self, side: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(3 * side * side + 6, 5)
        self.heads = nn.Linear(5, 2)
        self.double()

    def forward(self, images: Images, text: TextFeatures) -> Tensor:
        return self.heads(self.hidden(torch.cat([images.flatten(1), text.pooled], 1)).tanh())


@by_name
def test_gradients_are_correct_for_a_smooth_function(penalty: Penalty) -> None:
    text = text_features(3, dtype=torch.float64)

    _check_twice(penalty, SmoothJudge(2), _images(3, 2, 0), _images(3, 2, 1), text)


@by_name
def test_gradients_are_correct_for_the_discriminator(penalty: Penalty) -> None:
    discriminator = small_discriminator({4: 4, 8: 4}, heads_at=[8], minibatch_stddev=2).double()
    awaken(discriminator)
    text = text_features(2, dtype=torch.float64)

    _check_twice(penalty, discriminator, _images(2, 8, 0), _images(2, 8, 1), text)


@by_name
def test_penalty_is_correct_during_a_fade(penalty: Penalty) -> None:
    discriminator = small_discriminator({4: 4, 8: 4}, heads_at=[8]).double()
    awaken(discriminator)

    class Fading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = discriminator

        def forward(self, images: Images, text: TextFeatures) -> Tensor:
            return self.inner(images, text, Growth(8, 0.4))

    text = text_features(2, dtype=torch.float64)
    _check_twice(penalty, Fading(), _images(2, 8, 0), _images(2, 8, 1), text)


@by_name
def test_every_weight_of_the_discriminator_gets_gradients(penalty: Penalty) -> None:
    """With attention at sizes that use the fused kernel by default, which has no second derivative."""
    discriminator = small_discriminator({4: 4, 8: 4, 16: 4, 32: 4}, heads_at=[16], self_attention_at=[32])
    awaken(discriminator)

    penalty(
        discriminator, _images(2, 32, 0).float(), _images(2, 32, 1).float(), text_features(2)
    ).sum().backward()

    for name, parameter in discriminator.named_parameters():
        if name.startswith("grown") and "bias" not in name and "32" in name:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name


def _quadratic(images: Images, text: TextFeatures) -> Tensor:
    """D(x) = ||x||^2, in two heads that differ by a constant: its slope is 2 x."""
    size = images.square().sum((1, 2, 3))
    return torch.stack([size, size + 5], dim=1)


def test_values_equal_the_formula_for_a_quadratic_function() -> None:
    real, fake, text = _images(4, 4, 0), _images(4, 4, 1), text_features(4, dtype=torch.float64)

    r1, r2 = R1(1.0)(_quadratic, real, fake, text), R2(1.0)(_quadratic, real, fake, text)

    torch.testing.assert_close(r1, 2 * real.square().sum((1, 2, 3)))  # 1/2 ||2 x||^2
    torch.testing.assert_close(r2, 2 * fake.square().sum((1, 2, 3)))


def test_penalty_is_of_the_mean_over_the_heads() -> None:
    """Two heads of opposite slope have no slope together."""

    def logits(images: Images, text: TextFeatures) -> Tensor:
        size = images.square().sum((1, 2, 3))
        return torch.stack([size, -size], dim=1)

    real = _images(2, 4, 0)
    assert not R1(1.0)(logits, real, real, text_features(2, dtype=torch.float64)).any()


@pytest.mark.parametrize("sigma", [0.001, 0.01, 1.0])
@pytest.mark.parametrize("penalty", [FiniteDifferenceR1, FiniteDifferenceR2])
def test_finite_differences_of_a_linear_function_equal_the_gradient_penalty_on_average(
    penalty: type[FiniteDifferenceR1 | FiniteDifferenceR2], sigma: float
) -> None:
    """1/2 ||a||^2, whatever sigma is."""
    slope = _images(1, 2, 5)
    real, text = _images(20_000, 2, 0), text_features(20_000, dtype=torch.float64)

    def logits(images: Images, text: TextFeatures) -> Tensor:
        linear = (images * slope).sum((1, 2, 3))
        return torch.stack([linear, linear + 5], dim=1)

    torch.manual_seed(0)
    value = penalty(1.0, sigma=sigma)(logits, real, real, text)

    expected = slope.square().sum() / 2
    assert value.std() > 0.5 * expected  # one direction an image
    torch.testing.assert_close(value.mean(), expected, rtol=0.03, atol=0)


def test_finite_differences_are_of_the_right_images() -> None:
    """A curved function is steeper at the larger images."""
    real, fake, text = 10 * _images(64, 2, 0), _images(64, 2, 1), text_features(64, dtype=torch.float64)
    torch.manual_seed(0)

    r1, r2 = (kind(1.0)(_quadratic, real, fake, text) for kind in (FiniteDifferenceR1, FiniteDifferenceR2))

    assert r1.mean() > 20 * r2.mean()


def test_sigma_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"FiniteDifferenceR1\.sigma 0 must be more than 0"):
        FiniteDifferenceR1(1.0, sigma=0)


def test_wasserstein_penalty_lies_between_real_and_fake() -> None:
    real, fake = _images(64, 2, 0), _images(64, 2, 1)
    text = text_features(64, dtype=torch.float64)
    seen: list[Tensor] = []

    def logits(images: Images, text: TextFeatures) -> Tensor:
        seen.append(images.detach())
        return _quadratic(images, text)

    torch.manual_seed(0)
    value = WassersteinPenalty(1.0)(logits, real, fake, text)

    (between,) = seen
    share = ((between - real) / (fake - real)).flatten(1)
    torch.testing.assert_close(share, share[:, :1].expand_as(share))  # one place an image
    assert (share >= 0).all()
    assert (share <= 1).all()
    assert share.std() > 0.2
    length = 2 * between.square().sum((1, 2, 3)).sqrt()
    torch.testing.assert_close(value, (length - 1).square())


def test_wasserstein_penalty_is_the_squared_distance_of_the_gradient_norm_from_one() -> None:
    def logits(images: Images, text: TextFeatures) -> Tensor:
        return images[:, 0, 0, :1] * 3

    real = _images(2, 4, 0)
    value = WassersteinPenalty(1.0)(logits, real, real, text_features(2, dtype=torch.float64))

    torch.testing.assert_close(value, torch.full((2,), 4.0, dtype=torch.float64))


def test_matching_aware_penalty_is_the_sixth_power_over_images_and_words() -> None:
    real, text = _images(3, 2, 0), text_features(3, dtype=torch.float64)

    def logits(images: Images, text: TextFeatures) -> Tensor:
        return (images.square().sum((1, 2, 3)) + text.pooled.square().sum(1))[:, None] / 2

    value = MatchingAwarePenalty(2.0)(logits, real, _images(3, 2, 1), text)

    length = (real.square().sum((1, 2, 3)) + text.pooled.square().sum(1)).sqrt()
    torch.testing.assert_close(value, length**6)


@by_name
def test_constant_function_has_finite_gradients(penalty: Penalty) -> None:
    logit_fn = SmoothJudge(2)
    for parameter in logit_fn.parameters():
        torch.nn.init.zeros_(parameter)
    real = _images(2, 2, 0)

    penalty(logit_fn, real, real, text_features(2, dtype=torch.float64)).sum().backward()

    assert all(torch.isfinite(p.grad).all() for p in logit_fn.parameters() if p.grad is not None)


def test_input_images_are_not_changed() -> None:
    real, fake = _images(2, 2, 0), _images(2, 2, 1)

    R1(1.0)(_quadratic, real, fake, text_features(2, dtype=torch.float64))

    assert not real.requires_grad
    assert real.grad is None


def test_weight_follows_a_power_law_through_two_points() -> None:
    weight = PerResolution(32, 0.5, 256, 150.0)

    assert weight(32) == pytest.approx(0.5)
    assert weight(256) == pytest.approx(150.0)
    assert weight(64) / weight(32) == pytest.approx(weight(256) / weight(128))
    assert weight(64) == pytest.approx(0.5 * 300 ** (1 / 3))
    assert weight(512) > 150 > weight(128) > 0.5 > weight(16) > 0


def test_weight_is_a_number_or_a_power_law() -> None:
    assert R1(3.0).weight_at(64) == 3.0
    assert R2(PerResolution(8, 1.0, 16, 4.0)).weight_at(16) == pytest.approx(4.0)
    falling = R1(PerResolution(8, 1.0, 16, 4.0), schedule=Linear(1.0, 0.1, kimg=1))
    assert [falling.weight_at(16, seen) for seen in (0, 500, 5000)] == pytest.approx([4.0, 2.2, 0.4])


def test_every_is_stored_and_checked() -> None:
    assert R1(1.0).every == 1
    assert R1(1.0, every=16).every == 16
    with pytest.raises(ValueError, match="every 0 must be 1 or more"):
        R1(1.0, every=0)


@pytest.mark.parametrize(("images", "penalized"), [(8, 4), (7, 4), (1, 1)])
def test_half_a_batch_is_penalized_rounded_up(images: int, penalized: int) -> None:
    assert R1(1.0, share=0.5).count(images) == penalized
    assert R1(1.0).count(images) == images


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_is_more_than_zero_and_at_most_one(share: float) -> None:
    with pytest.raises(ValueError, match=rf"R1\.share {share} must be more than 0 and at most 1"):
        R1(1.0, share=share)
