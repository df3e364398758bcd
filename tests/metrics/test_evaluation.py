"""Diversity and memorisation, and the scores of an evaluation together."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.metrics.evaluation import Evaluation, diversity, evaluate_features, memorisation
from tests.helpers.metrics import Blocks

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


def test_diversity_equals_a_value_computed_by_hand() -> None:
    real = torch.tensor([[0.0], [6.0], [12.0]])  # mean distance 8
    several = torch.tensor([[[0.0], [1.0], [2.0]], [[5.0], [5.0], [5.0]]])  # means 4/3 and 0
    assert diversity(several, real) == pytest.approx(1 / 12)


def test_memorisation_equals_values_computed_by_hand() -> None:
    train, held_out = torch.tensor([[0.0], [10.0]]), torch.tensor([[1.0], [2.0], [6.0]])
    # To the nearest of training: real 1, 2, 4, whose lowest hundredth ends at 1.02; drawn 0.5, 1, 5.
    found = memorisation(torch.tensor([[0.5], [9.0], [5.0]]), held_out, train)
    assert found.ratio == pytest.approx(1 / 2)
    assert found.near == pytest.approx(2 / 3)
    assert found.training_images == 2


def test_copies_of_training_images_are_detected() -> None:
    train, held_out = features(300, 0), features(200, 1)
    copies = memorisation(train[:100] + features(100, 3, spread=0.01), held_out, train)
    new = memorisation(features(200, 2), held_out, train)
    assert copies.ratio < 0.05
    assert copies.near == 1
    assert new.ratio == pytest.approx(1, abs=0.1)
    assert new.near < 0.05


def test_real_images_get_the_best_scores() -> None:
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
    assert found.frechet_of_halves > 0.1  # from the sample size alone
    assert (found.diversity, found.drawn_again, found.memorisation) == (None, None, None)
    assert Evaluation.from_json(json.loads(json.dumps(asdict(found)))) == found


def test_evaluation_can_be_loaded_from_its_file() -> None:
    real = features(60, 0)
    found = evaluate_features(
        Blocks(), pictures=features(60, 1), paired=real, real=real, train=features(30, 2),
        subjects=[f"thing {i}" for i in range(60)], styles=[""] * 60, distractors=19,
        several=features(20, 3).unflatten(0, (5, 4)),
    )  # fmt: skip
    assert found.drawn_again == (5, 4)
    assert Evaluation.from_json(json.loads(json.dumps(asdict(found)))) == found


def test_scores_that_need_more_images_are_left_out() -> None:
    few = features(3, 0)
    found = evaluate_features(
        Blocks(), pictures=few, paired=few, real=few, subjects=["a", "b", "c"], styles=[""] * 3
    )
    assert (found.precision, found.coverage, found.retrieval, found.frechet_of_halves) == (None,) * 4
    with pytest.raises(UserError, match="1 pictures and 3 real images are too few"):
        evaluate_features(Blocks(), pictures=few[:1], paired=few[:1], real=few, subjects=["a"], styles=[""])
