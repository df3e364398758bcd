"""What a captioner reads in icons whose names differ in one word."""

from __future__ import annotations

import pytest
import torch

from benchmarks import caption_pairs
from benchmarks.caption_pairs import by_group, read_pairs
from benchmarks.icon_reference import Contrast
from tests.helpers.captioners import tiny_captioner

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_trained_captioner_reads_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red images are bells, blue ones bells off; they are read in batches of three."""
    monkeypatch.setattr(caption_pairs, "BATCH", 3)
    captioner = tiny_captioner()
    captioner.prepare(lambda: ["bell", "bell off"])
    colours = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]] * 4)
    images = colours[:, :, None, None].expand(-1, -1, 8, 8)
    names = [("bell", "bell off"), ("bell off", "bell")] * 4
    optimizer = torch.optim.Adam(captioner.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        memory = captioner.extract_features(images)
        captioner.cross_entropy(memory, [own for own, _ in names]).mean().backward()
        optimizer.step()

    assert read_pairs(captioner, images, names) == [True] * 8
    assert read_pairs(captioner, images.flip(1), names) == [False] * 8


def test_answers_are_counted_by_group() -> None:
    contrasts = [Contrast(group, "", 0, 1, None) for group in ("number, learnt", "negation, learnt") * 2]

    assert by_group(contrasts, [True, True, False, True]) == {
        "negation, learnt": (1.0, 2),
        "number, learnt": (0.5, 2),
    }
