"""Batches and features: shapes are checked, and rows stay together."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from jaxtyping import TypeCheckError

from imagen_pl.models.generators.style import Mapping
from imagen_pl.types import CaptionedBatch, Growth, TextFeatures
from tests.helpers.networks import text_features


def _batch(text: TextFeatures | None) -> CaptionedBatch:
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 8, 8).contiguous()
    return CaptionedBatch(images, ["a", "b", "", "d"], torch.arange(4), text)


def test_text_features_roll_whole_rows() -> None:
    text = text_features(4)

    rolled = text.roll()

    for i in range(4):
        assert torch.equal(rolled.tokens[i], text.tokens[i - 1])
        assert torch.equal(rolled.mask[i], text.mask[i - 1])
        assert torch.equal(rolled.pooled[i], text.pooled[i - 1])
    assert torch.equal(rolled.roll(3).pooled, text.pooled)


def test_noise_has_its_share_of_each_vector_s_length_and_leaves_padding_unchanged() -> None:
    text = text_features(400)
    torch.manual_seed(0)

    noisy = text.with_noise(0.5)

    moved = (noisy.pooled - text.pooled).norm(dim=1) / text.pooled.norm(dim=1)
    assert moved.square().mean().sqrt() == pytest.approx(0.5, abs=0.03)
    real = text.mask
    moved = (noisy.tokens - text.tokens)[real].norm(dim=1) / text.tokens[real].norm(dim=1)
    assert moved.square().mean().sqrt() == pytest.approx(0.5, abs=0.03)
    assert not noisy.tokens[~real].any()
    assert torch.equal(noisy.mask, text.mask)


def test_rows_are_taken_by_slice_and_by_number() -> None:
    text = text_features(4)

    assert len(text) == 4
    assert text.dim == 6
    assert len(text[1:3]) == 2
    picked = text[torch.tensor([3, 0])]
    assert torch.equal(picked.tokens, text.tokens[[3, 0]])
    assert torch.equal(picked.mask, text.mask[[3, 0]])
    assert torch.equal(picked.pooled, text.pooled[[3, 0]])


def test_a_dtype_changes_the_vectors_and_not_the_mask() -> None:
    half = text_features(4).to(dtype=torch.bfloat16)

    assert half.tokens.dtype == half.pooled.dtype == torch.bfloat16
    assert half.mask.dtype == torch.bool


@pytest.mark.parametrize("with_text", [True, False])
def test_a_batch_moves_with_everything_it_holds(with_text: bool) -> None:
    moved = _batch(text_features(4) if with_text else None).to("meta")

    assert len(moved) == 4
    assert moved.captions == ["a", "b", "", "d"]
    assert moved.images.device.type == moved.indices.device.type == "meta"
    assert (moved.text is not None) == with_text
    if moved.text is not None:
        assert {t.device.type for t in (moved.text.tokens, moved.text.mask, moved.text.pooled)} == {"meta"}


def test_growth_is_complete_by_default_and_immutable() -> None:
    growth = Growth(16)

    assert growth.fade == 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        growth.fade = 0.5  # type: ignore[misc]


def test_shapes_that_disagree_are_found_in_tests() -> None:
    """The import hook of tests/helpers/typecheck.py is at work."""
    with pytest.raises(TypeCheckError):
        TextFeatures(torch.zeros(2, 3, 4), torch.zeros(2, 5, dtype=torch.bool), torch.zeros(2, 4))
    with pytest.raises(TypeCheckError):
        CaptionedBatch(torch.zeros(2, 3, 8, 8), ["a", "b"], torch.arange(2))  # not uint8
    with pytest.raises(TypeCheckError):
        Mapping(4, 6, 8, 1)(torch.zeros(2, 4), torch.zeros(3, 6), torch.zeros(8))
