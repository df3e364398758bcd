"""Each adversarial loss against its formula, at its extremes, and the direction of its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from imagen_pl.losses.adversarial import AdversarialLoss, Hinge, NonSaturating, Relativistic, Wasserstein

LOSSES = [NonSaturating(), Hinge(), Wasserstein(), Relativistic()]
# Two samples, two heads.
A = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
B = torch.tensor([[1.0, 0.0], [-2.0, 3.0]])


def _softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def _relu(x: float) -> float:
    return max(x, 0.0)


@pytest.mark.parametrize(
    ("loss", "discriminator", "generator"),
    [
        (NonSaturating(), lambda a, b: _softplus(-a) + _softplus(b), lambda a, b: _softplus(-b)),
        (Hinge(), lambda a, b: _relu(1 - a) + _relu(1 + b), lambda a, b: -b),
        (Wasserstein(), lambda a, b: b - a + 1e-3 * a * a, lambda a, b: -b),
        (Wasserstein(drift=0.5), lambda a, b: b - a + 0.5 * a * a, lambda a, b: -b),
        (Relativistic(), lambda a, b: _softplus(-(a - b)), lambda a, b: _softplus(-(b - a))),
        (
            Relativistic(centring=0.5),
            lambda a, b: _softplus(-(a - b)) + 0.5 * (a + b) ** 2,
            lambda a, b: _softplus(-(b - a)),
        ),
    ],
)
def test_losses_equal_their_formulas(loss: AdversarialLoss, discriminator, generator) -> None:  # type: ignore[no-untyped-def]
    def by_hand(formula) -> Tensor:  # type: ignore[no-untyped-def]
        rows = [
            [formula(*pair) for pair in zip(*row, strict=True)]
            for row in zip(A.tolist(), B.tolist(), strict=True)
        ]
        return torch.tensor([sum(row) / len(row) for row in rows])

    torch.testing.assert_close(loss.discriminator(A, B), by_hand(discriminator))
    torch.testing.assert_close(loss.generator(B, A), by_hand(generator))


def test_losses_equal_values_computed_by_hand() -> None:
    """With the results written down, in case formula and code have the same mistake."""
    one = torch.tensor([[1.0]])

    assert NonSaturating().discriminator(one, -one).item() == pytest.approx(2 * 0.3132617)
    assert Hinge().discriminator(one, -one).item() == 0
    assert Hinge().discriminator(-one, one).item() == 4
    assert Wasserstein().discriminator(one, -one).item() == pytest.approx(-2 + 1e-3)
    assert Relativistic().discriminator(one, -one).item() == pytest.approx(0.1269280)
    assert Relativistic().generator(-one, one).item() == pytest.approx(2.1269280)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("size", [1e4, 1e9])
def test_huge_logits_give_finite_losses_and_gradients(loss: AdversarialLoss, size: float) -> None:
    for a, b in ((size, -size), (-size, size), (size, size), (-size, -size)):
        real = torch.full((1, 2), a, requires_grad=True)
        fake = torch.full((1, 2), b, requires_grad=True)

        values = torch.cat([loss.discriminator(real, fake), loss.generator(fake, real)])
        slopes = torch.autograd.grad(values.sum(), [real, fake])

        assert torch.isfinite(values).all()
        assert all(torch.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_discriminator_widens_the_margin_and_the_generator_narrows_it(loss: AdversarialLoss) -> None:
    draw = torch.Generator().manual_seed(0)
    real = (0.3 * torch.randn(6, 2, generator=draw)).requires_grad_()
    fake = (0.3 * torch.randn(6, 2, generator=draw)).requires_grad_()

    real_slope, fake_slope = torch.autograd.grad(loss.discriminator(real, fake).mean(), [real, fake])
    (pull,) = torch.autograd.grad(loss.generator(fake, real.detach()).mean(), fake)

    assert (real_slope < 0).all()  # a step down the slope raises a
    assert (fake_slope > 0).all()  # and lowers b
    assert (pull < 0).all()  # the generator raises b


def test_hinge_has_no_gradient_beyond_the_margin() -> None:
    real, fake = torch.full((1, 1), 3.0, requires_grad=True), torch.full((1, 1), -3.0, requires_grad=True)

    slopes = torch.autograd.grad(Hinge().discriminator(real, fake).sum(), [real, fake])

    assert not any(slope.any() for slope in slopes)


def test_relativistic_loss_depends_on_differences_alone() -> None:
    loss = Relativistic()

    torch.testing.assert_close(loss.discriminator(A + 7, B + 7), loss.discriminator(A, B))
    torch.testing.assert_close(loss.confidence(A + 7, B + 7), loss.confidence(A, B))
    torch.testing.assert_close(loss.generator(B, A), loss.discriminator(B, A))


def test_relativistic_generator_loss_needs_real_logits() -> None:
    assert [loss.compares for loss in LOSSES] == [False, False, False, True]
    with pytest.raises(ValueError, match="the relativistic loss compares: give real_logits too"):
        Relativistic().generator(B)


def test_confidence_is_the_mean_sign() -> None:
    assert NonSaturating().confidence(A, B).tolist() == [0.0, 0.5]
    assert Relativistic().confidence(A, B).tolist() == [0.0, 0.0]
    assert Relativistic().confidence(A + 9, B).tolist() == [1.0, 1.0]


def test_centring_stops_the_logits_from_drifting() -> None:
    """Both logits shifted together: the difference alone does not notice."""
    real, fake = torch.tensor([[5.0]], requires_grad=True), torch.tensor([[4.0]], requires_grad=True)
    slopes = {}
    for centring in (0.0, 0.01):
        loss = Relativistic(centring).discriminator(real, fake)
        slopes[centring] = float(sum(torch.autograd.grad(loss.sum(), [real, fake])))

    assert slopes[0.0] == pytest.approx(0, abs=1e-7)
    assert slopes[0.01] == pytest.approx(2 * 2 * 0.01 * 9)


def test_centring_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match=r"Relativistic.centring -1 must be 0 or more"):
        Relativistic(-1)
