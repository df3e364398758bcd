"""Our part of benchmarks/baselines/gigagan.py; the package is not installed and is replaced by a stub."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.models.text.feature_cache import TextCache

CAPTIONS = ["red heart", "blue heart", "cat"]


class Losses(NamedTuple):
    divergence: float


class Standing:
    """Records the inputs of its steps; a picture is as bright as its caption is long."""

    def __init__(self, loss: float = 1.0) -> None:
        self.loss = loss
        self.judged: list[list[tuple[Tensor, list[str]]]] = []
        self.penalised: list[bool] = []
        self.unwrapped_G = self.unwrapped_D = SimpleNamespace(total_params=7)

    def train_discriminator_step(self, dl_iter: Iterator[Any], apply_gradient_penalty: bool) -> Losses:
        self.judged.append(list(dl_iter))
        self.penalised.append(apply_gradient_penalty)
        return Losses(self.loss)

    def train_generator_step(self, dl_iter: Iterator[Any], batch_size: int) -> Losses:
        assert len(next(dl_iter)[0]) == batch_size
        return Losses(self.loss)

    def generate(self, texts: list[str], noise: Tensor) -> Tensor:
        assert len(noise) == len(texts)
        return torch.tensor([len(text) / 255 for text in texts])[:, None, None, None].expand(-1, 3, 32, 32)


@pytest.fixture
def gigagan(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    package, clip = ModuleType("gigagan_pytorch"), ModuleType("gigagan_pytorch.open_clip")
    for name in ("Discriminator", "Generator", "GigaGAN", "StyleNetwork", "TextEncoder"):
        setattr(package, name, object)
    clip.OpenClipAdapter = nn.Module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gigagan_pytorch", package)
    monkeypatch.setitem(sys.modules, "gigagan_pytorch.open_clip", clip)
    monkeypatch.delitem(sys.modules, "benchmarks.baselines.gigagan", raising=False)
    return importlib.import_module("benchmarks.baselines.gigagan")


def test_discriminator_reads_real_images_with_their_own_captions(
    gigagan: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package takes images from one batch and captions from the next: both are the same one."""
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    monkeypatch.setattr(gigagan, "time", SimpleNamespace(monotonic=iter(range(100)).__next__))
    gan = Standing()

    output = gigagan.train(gan, images, CAPTIONS, minutes=8.5 / 60, batch=4)

    assert output["images_seen"] == 32
    assert output["images_per_second"] == pytest.approx(32 / output["seconds"])
    assert gan.penalised == [False, False, False, True] * 2
    for first, second in gan.judged:
        assert first is second
        pixels, captions = first
        assert captions == [CAPTIONS[round(float(x) * 255)] for x in pixels[:, 0, 0, 0]]


def test_nan_losses_stop_training(gigagan: ModuleType) -> None:
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(FloatingPointError, match="step 1: "):
        gigagan.train(Standing(float("nan")), images, CAPTIONS, minutes=1, batch=4)


def test_images_are_in_the_order_of_the_captions(
    gigagan: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gigagan, "DRAWN_AT_ONCE", 2)
    drawn = gigagan.draw(Standing(), CAPTIONS, seed=0)
    assert (drawn.shape, drawn.dtype) == ((3, 32, 32, 3), np.dtype("uint8"))
    assert drawn[:, 0, 0, 0].tolist() == [len(caption) for caption in CAPTIONS]


def test_caption_vectors_equal_ours(gigagan: ModuleType) -> None:
    cache = TextCache.build(FrozenTextEncoder(), CAPTIONS)
    pooled, tokens = gigagan.CachedCaptions(cache).embed_texts(CAPTIONS[:2])
    ours = cache(CAPTIONS[:2])
    assert torch.equal(pooled, ours.pooled)
    assert torch.equal(tokens, ours.tokens)
