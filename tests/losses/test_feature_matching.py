"""FeatureMatching, and what the terms of text_matching.py have in common."""

from __future__ import annotations

import pytest
import torch

from imagen_pl.losses.adversarial import Relativistic
from imagen_pl.losses.base import LossTerm
from imagen_pl.losses.text_matching import (
    FeatureMatching,
    ImageTextContrastive,
    MismatchedCaptions,
)
from tests.helpers.networks import small_discriminator, text_features
from tests.helpers.text_matching import Dot, features_of, like_captions, matching_inputs

pytestmark = pytest.mark.usefixtures("one_thread")


def test_feature_matching_is_zero_where_both_are_the_same() -> None:
    discriminator, text = small_discriminator(), text_features(4)
    seen = discriminator.extract_features(torch.randn(4, 3, 16, 16))

    assert not FeatureMatching()(discriminator, Relativistic(), matching_inputs(seen, text, seen)).any()


def test_feature_matching_equals_its_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    mine, theirs = (
        features_of(
            torch.randn(2, 6, generator=draw),
            torch.randn(2, 3, 8, 8, generator=draw),
            7 * torch.randn(2, 5, 4, 4, generator=draw),
        )
        for _ in range(2)
    )

    loss = FeatureMatching()(Dot(), Relativistic(), matching_inputs(mine, text_features(2), theirs))

    pairs = [(mine.maps[8], theirs.maps[8]), (mine.maps[4], theirs.maps[4]), (mine.final, theirs.final)]
    for i in range(2):
        terms = [float((a[i] - b[i]).abs().mean() / b.abs().mean()) for a, b in pairs]
        assert float(loss[i]) == pytest.approx(sum(terms) / 3, rel=1e-5)


def test_feature_matching_pulls_generated_to_real_features() -> None:
    real = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    fake = torch.zeros(2, 6, requires_grad=True)

    loss = FeatureMatching()(
        Dot(), Relativistic(), matching_inputs(features_of(fake), text_features(2), features_of(real))
    )
    (slope,) = torch.autograd.grad(loss.sum(), fake)

    assert torch.equal(slope.sign(), -real.sign())


def test_feature_matching_is_finite_beside_dead_features() -> None:
    seen, dead = features_of(torch.ones(2, 6)), features_of(torch.zeros(2, 6))
    loss = FeatureMatching()(Dot(), Relativistic(), matching_inputs(seen, text_features(2), dead))

    assert torch.isfinite(loss).all()


def test_feature_matching_needs_real_features() -> None:
    text = text_features(2)
    with pytest.raises(ValueError, match=r"feature matching compares: it needs inputs\.real_features"):
        FeatureMatching()(Dot(), Relativistic(), matching_inputs(like_captions(text), text))


@pytest.mark.parametrize(
    ("loss", "name", "needs_pairs", "weights"),
    [
        (MismatchedCaptions(), "mismatch", False, (1.0, 0.0)),
        (MismatchedCaptions(0.5, 0.25), "mismatch", False, (0.5, 0.25)),
        (ImageTextContrastive(), "contrastive", False, (1.0, 1.0)),
        (FeatureMatching(3.0), "feature_matching", True, (0.0, 3.0)),
    ],
)
def test_each_term_has_its_name_weights_and_needs_pairs_flag(
    loss: LossTerm, name: str, needs_pairs: bool, weights: tuple[float, float]
) -> None:
    assert (loss.name, loss.needs_pairs) == (name, needs_pairs)
    assert (loss.discriminator_weight, loss.generator_weight) == weights
