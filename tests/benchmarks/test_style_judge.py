"""The judge of sets and kinds, on features whose classes are known."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.style_judge import StyleJudge


def pictures(count: int, seed: int, noise: float = 1.0) -> tuple[Tensor, list[str]]:
    centres = 2 * torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.randint(5, (count,), generator=draw)
    features = centres[kinds] + noise * torch.randn(count, 30, generator=draw)
    return features, [f"set {kind}" for kind in kinds.tolist()]


def test_judge_knows_new_pictures_of_its_classes() -> None:
    judge = StyleJudge.fit(*pictures(300, 1))
    assert judge.accuracy(*pictures(200, 2))[0] > 0.97
    features, labels = pictures(200, 3)
    assert judge.accuracy(features, labels[1:] + labels[:1])[0] < 0.4, "chance is a fifth"
    assert judge.accuracy(0 * features, labels)[0] < 0.4


def test_rare_classes_are_neither_fitted_nor_asked() -> None:
    features, labels = pictures(300, 1)
    labels[:10] = ["rare"] * 10
    judge = StyleJudge.fit(features, labels)
    assert "rare" not in judge.classes
    share, number = judge.accuracy(features, labels)
    assert (number, share > 0.97) == (290, True)
    assert judge.accuracy(features[:10], ["rare"] * 10)[1] == 0
