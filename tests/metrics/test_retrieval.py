"""Retrieval on synthetic sets with known answers, and with benchmarks/protocol.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import protocol
from imagen_pl.errors import UserError
from imagen_pl.metrics.retrieval import Retrieval, retrieval_accuracy

STYLES = ["noto", "twemoji"]


def corners(count: int) -> Tensor:
    """One image along each axis, and all have a large vector in common, as real features do."""
    return torch.eye(count, dtype=torch.float64) + 100


def labels(subjects: int) -> tuple[list[int], list[str]]:
    """Each subject in both styles."""
    return [i // 2 for i in range(2 * subjects)], STYLES * subjects


def test_own_images_rank_first_and_opposite_ones_last() -> None:
    real = corners(40)
    found = retrieval_accuracy(real, real, *labels(20), distractors=9)
    assert found == Retrieval(top1=1, top5=1, mrr=1, queries=40, candidates=10)
    away = 2 * real.mean(0) - real  # mirrored at the mean
    found = retrieval_accuracy(away, real, *labels(20), distractors=9)
    assert found == Retrieval(top1=0, top5=0, mrr=found.mrr, queries=40, candidates=10)
    assert found.mrr == pytest.approx(0.1)


def test_ranks_equal_hand_computed_values() -> None:
    """Four real images at four sides of a square; every picture lies near a known order of them."""
    real = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    # The nearest of each in order: 0 1 3 2; 0 1 3 2; 1 2 0 3; 2 1 3 0.
    pictures = torch.tensor([[1, 0.2], [1, 0.2], [-0.5, 1], [-1, 0.1]])
    found = retrieval_accuracy(pictures, real, [0, 1, 2, 3], ["s"] * 4, distractors=3)
    # Ranks of the true ones: 1, 2, 2, 3.
    assert found.top1 == 0.25
    assert found.top5 == 1
    assert found.mrr == pytest.approx((1 + 1 / 2 + 1 / 2 + 1 / 3) / 4)


def test_features_are_centred() -> None:
    """Without centring, a picture with only the common vector would be near to all."""
    real = corners(6)
    pictures = 0.01 * (real - 100) + 0.01 * (real - 100).mean(0) + real.mean(0)
    assert retrieval_accuracy(pictures, real, range(6), ["s"] * 6, distractors=5).top1 == 1


def test_distractors_are_other_subjects_of_the_same_style() -> None:
    """Distractors differ from a picture in its subject and never in its style."""
    subjects, styles = labels(12)
    real = corners(24)
    # Each picture is its subject's image in the other style: every distractor is as far as the true image.
    swapped = real[[i ^ 1 for i in range(24)]]
    assert retrieval_accuracy(swapped, real, subjects, styles, distractors=11).mrr == pytest.approx(1 / 12)
    # Images of one subject are not distractors of each other.
    twins = torch.cat([real, real])
    found = retrieval_accuracy(twins, twins, subjects * 2, styles * 2, distractors=11)
    assert found.top1 == 1


def test_ties_count_as_misses() -> None:
    real = corners(10)
    same = real[:1].expand(10, -1)
    found = retrieval_accuracy(same, real, range(10), ["s"] * 10, distractors=9)
    assert found.top1 == 0.1  # only the one that is the true image of its subject
    flat = torch.full((10, 10), 7.0)
    assert retrieval_accuracy(flat, real, range(10), ["s"] * 10, distractors=9).mrr == pytest.approx(0.1)
    broken = torch.full((10, 10), float("nan"))
    assert retrieval_accuracy(broken, real, range(10), ["s"] * 10, distractors=9).mrr == pytest.approx(0.1)


def test_noise_scores_at_chance() -> None:
    draw = torch.Generator().manual_seed(0)
    real, pictures = (torch.randn(4000, 16, generator=draw) for _ in range(2))
    found = retrieval_accuracy(pictures, real, range(4000), ["s"] * 4000)
    assert found.candidates == 100
    assert found.top1 == pytest.approx(0.01, abs=0.006)
    assert found.top5 == pytest.approx(0.05, abs=0.012)
    assert found.mrr == pytest.approx(sum(1 / k for k in range(1, 101)) / 100, abs=0.01)


def test_shuffled_captions_change_every_subject() -> None:
    real = corners(40)
    found = retrieval_accuracy(real, real, *labels(20), distractors=19, shuffled=True)
    assert found.top1 == 0
    assert found.queries == 40
    # Also where subjects come several times.
    twice = torch.cat([real, real])
    subjects, styles = labels(20)
    found = retrieval_accuracy(twice, twice, subjects * 2, styles * 2, distractors=19, shuffled=True)
    assert found.top1 == 0


def test_images_that_match_only_the_style_score_equally_when_shuffled() -> None:
    """The shuffled score is the baseline that ignores the subject."""
    draw = torch.Generator().manual_seed(0)
    real = torch.randn(600, 8, generator=draw)
    typical = real.mean(0) + 0.5 * torch.randn(600, 8, generator=draw)
    subjects, styles = list(range(600)), ["a"] * 300 + ["b"] * 300
    honest = retrieval_accuracy(typical, real, subjects, styles)
    shuffled = retrieval_accuracy(typical, real, subjects, styles, shuffled=True)
    assert honest.top5 == pytest.approx(shuffled.top5, abs=0.04)


def test_retrieval_depends_on_the_seed_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    real = torch.randn(300, 8, generator=draw)
    pictures = real + torch.randn(300, 8, generator=draw)
    found = [
        retrieval_accuracy(pictures, real, range(300), ["s"] * 300, seed=seed, distractors=20)
        for seed in (3, 3, 4)
    ]
    assert found[0] == found[1]
    assert found[0] != found[2]
    state = torch.get_rng_state()
    retrieval_accuracy(pictures, real, range(300), ["s"] * 300, distractors=20)
    assert torch.equal(torch.get_rng_state(), state)


def test_too_few_subjects_raise() -> None:
    real = corners(6)
    with pytest.raises(UserError, match="style noto holds 3 subjects: 99 distractors need 100"):
        retrieval_accuracy(real, real, *labels(3))
    with pytest.raises(UserError, match="need 100; use at most 2 distractors, or more pictures"):
        retrieval_accuracy(real, real, *labels(3))
    with pytest.raises(UserError, match=r"^fluent style holds 6 subjects: 99"):
        retrieval_accuracy(real, real, range(6), ["fluent style"] * 6)
    with pytest.raises(UserError, match=r"^the captions name 6 subjects: 99"):
        retrieval_accuracy(real, real, range(6), [""] * 6)
    with pytest.raises(ValueError, match="6 real images, 5 subjects and 6 styles must be equally many"):
        retrieval_accuracy(real, real, range(5), ["noto"] * 6)
    with pytest.raises(ValueError, match="and at least one"):
        retrieval_accuracy(real[:0], real[:0], [], [])


# ------------------------------------------------------------------ the protocol


def test_protocol_samples_captions_of_each_split_and_style() -> None:
    pictures, encoded = protocol.read_pictures()
    assert len(pictures) == len(encoded) == 5107
    assert len({(p.subject, p.style) for p in pictures}) == len(pictures)  # one skin tone
    rows = protocol.choose(pictures, seed=0)
    asked = [pictures[row] for row in rows]
    assert len(set(rows)) == 1000
    for split, count in {"train": 600, "test": 300, "composition": 100}.items():
        styles = [p.style for p in asked if p.split == split]
        assert len(styles) == count
        assert max(map(styles.count, styles)) - min(map(styles.count, styles)) <= 1
    assert all(p.caption.endswith(f", {p.style} style") for p in asked)
    assert protocol.choose(pictures, seed=0) == rows != protocol.choose(pictures, seed=1)


def test_blurring_and_shrinking_keep_the_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    smooth = torch.rand(2, 3, 4, 4, generator=draw) * 128 + 64
    images = torch.nn.functional.interpolate(smooth, (64, 64), mode="bicubic").round().to(torch.uint8)
    small = protocol.shrink(images, 32)
    assert small.shape == (2, 3, 32, 32)
    means = images.float().view(2, 3, 32, 2, 32, 2).mean((3, 5))
    assert (small.float() - means).abs().max() <= 0.5
    assert protocol.shrink(small, 32) is small
    softer = [protocol.blur(small, factor) for factor in (2, 4)]
    gaps = [(soft.float() - small.float()).abs().mean() for soft in softer]
    assert 0 < gaps[0] < gaps[1]
    assert all(abs(soft.float().mean() - small.float().mean()) < 0.5 for soft in softer)


def test_features_of_real_images_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEN_PL_CACHE", str(tmp_path))
    made: list[int] = []

    def make() -> Tensor:
        made.append(1)
        return torch.ones(2, 3)

    assert torch.equal(protocol.cached("a", make), protocol.cached("a", make))
    assert made == [1]
    protocol.cached("b", make)
    assert made == [1, 1]
    for file in (tmp_path / "quality").iterdir():
        file.write_bytes(b"damaged")
    assert torch.equal(protocol.cached("a", make), torch.ones(2, 3))
    assert made == [1, 1, 1]
