"""The plain loop is a fair baseline: it learns, and its pictures follow their captions."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.baselines import plain_loop
from benchmarks.protocol import TrainingCost
from benchmarks.quality import PICTURES
from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.models.text.feature_cache import TextCache

CAPTIONS = ["red square", "green square", "blue square"]


@pytest.fixture(autouse=True)
def _three_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """With three plain images of three colours in place of the emoji."""
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    images[range(3), range(3)] = 255
    texts = TextCache.build(FrozenTextEncoder(), CAPTIONS)(CAPTIONS).pooled
    monkeypatch.setattr(plain_loop, "training_set", lambda: (images, texts))


def test_plain_loop_learns_colours_from_captions() -> None:
    generator, about = plain_loop.train(minutes=0, images_wanted=1000, batch=16, seed=0)
    assert about["images_seen"] == 1008
    assert about["generator_parameters"] == sum(p.numel() for p in plain_loop.Generator().parameters())
    drawn = plain_loop.draw(generator, CAPTIONS, seed=0)
    assert (drawn.shape, drawn.dtype) == ((3, 32, 32, 3), np.dtype("uint8"))
    assert drawn.mean((1, 2)).argmax(0).tolist() == [0, 1, 2]  # the reddest is the red one's, and so on
    assert np.array_equal(drawn, plain_loop.draw(generator, CAPTIONS, seed=0))
    assert not np.array_equal(drawn, plain_loop.draw(generator, CAPTIONS, seed=1))


def test_plain_loop_stops_at_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that moves by 15 seconds at each call."""
    clock = itertools.count(step=15)
    monkeypatch.setattr(plain_loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    _, about = plain_loop.train(minutes=1, images_wanted=None, batch=4, seed=0)
    assert about["images_seen"] == 3 * 4  # after 15, 30 and 45 seconds
    assert about["images_per_second"] == 3 * 4 / 60


def test_plain_loop_output_is_readable_by_quality(tmp_path: Path) -> None:
    generator, about = plain_loop.train(minutes=0, images_wanted=16, batch=16, seed=0)
    plain_loop.write_pictures(tmp_path, plain_loop.draw(generator, CAPTIONS, seed=0), about)
    took = {field.name for field in fields(TrainingCost)}
    assert json.loads((tmp_path / "about.json").read_text()).keys() == took
    assert np.load(tmp_path / PICTURES).shape == (3, 32, 32, 3)
