"""data.crop_from: random squares of larger images, and the images that a run shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.sources.base import Row
from imagen_pl.errors import UserError
from tests.helpers.image_files import Solid, WithSplits, encoded, noise


class Speckled(WithSplits):
    """Images of noise, each its own."""

    def image(self, row: Row) -> bytes:
        return encoded(noise(self.side, self.side, seed=row.place))


def test_random_squares_are_cut_from_larger_images() -> None:
    settings: dict[str, Any] = {"batch_size": 4, "num_workers": 0, "epoch_kimg": 0.032}
    data = CaptionedImages(Speckled(16, side=32), resolution=8, crop_from=32, **settings)
    whole = CaptionedImages(Speckled(16, side=32), resolution=32, **settings)
    for crops, images in (
        (data.train_dataloader(), whole.train_dataloader()),
        (data.val_dataloader(), whole.val_dataloader()),
    ):
        places = []
        for part, full in zip(crops, images, strict=True):
            for square, image in zip(part.images, full.images, strict=True):
                windows = image.unfold(1, 8, 1).unfold(2, 8, 1).movedim(0, 2)  # (25, 25, 3, 8, 8)
                same = (windows == square).flatten(2).all(-1)
                assert same.sum() == 1
                places.append(tuple(same.nonzero()[0].tolist()))
        assert len(set(places)) == len(places)
    again = list(data.val_dataloader())
    for first, second in zip(data.val_dataloader(), again, strict=True):
        assert torch.equal(first.images, second.images)


def test_squares_come_from_images_that_are_large_enough() -> None:
    data = CaptionedImages(Solid(8, side=16), resolution=8, num_workers=0, crop_from=32)
    with pytest.raises(UserError, match="no image can be used for training: 8 smaller than 32 px"):
        next(iter(data.train_dataloader()))
    small = CaptionedImages(Solid(8, side=16), resolution=8, num_workers=0, crop_from=4, min_size=1)
    with pytest.raises(UserError, match=r"data.crop_from 4 must be 8 or more"):
        next(iter(small.train_dataloader()))


def test_the_same_split_has_another_fingerprint_with_squares() -> None:
    whole, squares = (CaptionedImages(WithSplits(16, side=32), crop_from=size) for size in (None, 24))
    assert whole.fingerprint != squares.fingerprint
    assert whole.training_fingerprint != squares.training_fingerprint
    other = CaptionedImages(WithSplits(16, side=32), crop_from=24, seed=1)  # other squares
    assert other.fingerprint != squares.fingerprint
    assert other.training_fingerprint != squares.training_fingerprint


def test_images_to_watch_are_spread_over_the_held_out_ones() -> None:
    data = CaptionedImages(WithSplits(16, side=32), resolution=8, num_workers=0)
    batch = data.batch_to_watch(3)
    assert batch.images.shape == (3, 3, 8, 8)
    held_out = [row.captions[0] for row in data._rows.validation]
    assert batch.captions[0] == held_out[0]
    assert batch.captions[-1] == held_out[-1]
    none = CaptionedImages(Solid(8), resolution=8, num_workers=0, val_fraction=0)
    assert len(none.batch_to_watch(2)) == 2
