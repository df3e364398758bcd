"""Diversity and memorisation, and the scores of an evaluation together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.metrics.evaluation import diversity, evaluate_features, memorisation
from tests.unit.test_frechet import Blocks

pytestmark = pytest.mark.usefixtures("one_thread")


def features(count: int, seed: int, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def test_diversity_is_none_for_one_picture_and_one_for_pictures_as_varied_as_real_ones() -> None:
    real = features(400, 0)
    same = features(20, 1)[:, None].repeat(1, 4, 1)
    assert diversity(same, real) == 0
    assert diversity(features(80, 2).unflatten(0, (20, 4)), real) == pytest.approx(1, abs=0.05)
    half = same + features(80, 2, spread=0.5).unflatten(0, (20, 4))
    assert diversity(half, real) == pytest.approx(0.5, abs=0.03)


def test_copies_of_training_images_are_told_from_new_ones() -> None:
    train, held_out = features(300, 0), features(200, 1)
    copies = memorisation(train[:100] + features(100, 3, spread=0.01), held_out, train)
    new = memorisation(features(200, 2), held_out, train)
    assert copies.ratio < 0.05
    assert copies.near == 1
    assert new.ratio == pytest.approx(1, abs=0.1)
    assert new.near < 0.05


def test_an_evaluation_of_the_real_images_themselves() -> None:
    real = features(60, 0)
    subjects = [f"thing {i}" for i in range(60)]
    found = evaluate_features(
        Blocks(), pictures=real, paired=real, real=real, subjects=subjects, styles=[""] * 60, distractors=19
    )
    assert found.frechet == pytest.approx(0, abs=1e-4)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.retrieval is not None
    assert found.shuffled is not None
    assert found.retrieval.top1 == 1 > 0.3 > found.shuffled.top1
    assert found.frechet_of_halves is not None
    assert found.frechet_of_halves > 0.1  # by the sampling alone
    assert (found.diversity, found.memorisation) == (None, None)


def test_what_needs_more_images_is_left_out() -> None:
    few = features(3, 0)
    found = evaluate_features(
        Blocks(), pictures=few, paired=few, real=few, subjects=["a", "b", "c"], styles=[""] * 3
    )
    assert (found.precision, found.coverage, found.retrieval, found.frechet_of_halves) == (None,) * 4
    with pytest.raises(UserError, match="1 pictures and 3 real images are too few"):
        evaluate_features(Blocks(), pictures=few[:1], paired=few[:1], real=few, subjects=["a"], styles=[""])
