"""CaptionedRows: which rows are trained on and scored, their captions and their fingerprint."""

from __future__ import annotations

import pytest

from imagen_pl.errors import UserError
from tests.helpers.image_files import Solid, WithSplits, module


def test_a_source_without_a_test_split_points_to_validate() -> None:
    with pytest.raises(UserError, match="has no split test: it has train; `imagen-pl validate` scores"):
        module(Solid(8), val_split="test").setup()


def test_held_out_rows_stay_the_same_and_are_not_trained_on() -> None:
    def split(count: int, fraction: float = 0.3) -> tuple[set[str], set[str]]:
        rows = module(Solid(count), val_fraction=fraction)._rows
        return {row.name for row in rows.train}, {row.name for row in rows.validation}

    train, validation = split(100)
    assert not train & validation
    assert len(train | validation) == 100
    assert 15 < len(validation) < 45
    more_train, more_validation = split(120)
    assert validation <= more_validation
    assert train <= more_train
    assert len(split(3, 0.01)[1]) == 1
    assert split(100, 0.0)[1] == set()


def test_single_image_cannot_be_split() -> None:
    with pytest.raises(UserError, match=r"solid has 1 image: give at least 2, or data.val_fraction 0"):
        module(Solid(1)).setup()
    assert len(module(Solid(1), val_fraction=0)._rows.train) == 1


def test_example_captions_are_from_all_over_the_training_rows() -> None:
    data = module(Solid(40), val_fraction=0)
    data.setup("fit")
    every = data.some_captions()
    found = data.example_captions(5)
    assert (len(found), found[0], found[-1]) == (5, every[0], every[-1])
    assert data.example_captions(1000) == every


def test_half_of_the_example_captions_are_held_out() -> None:
    data = module(WithSplits(40))
    data.setup("fit")
    found = data.captions_to_watch(6)
    assert found == ["number 6", "number 22", "number 39", "number 0", "number 1", "number 3"]
    data = module(Solid(40), val_fraction=0)
    data.setup("fit")
    assert data.captions_to_watch(6) == data.example_captions(6)


def test_fingerprint_tells_validation_sets_apart() -> None:
    base = module(Solid(30)).fingerprint
    assert base == module(Solid(30), batch_size=8, horizontal_flip=True, caption_dropout=0.1).fingerprint
    others = [
        module(Solid(31), val_fraction=0.5),
        module(Solid(30), fit="pad"),
        module(Solid(30), background="black"),
        module(Solid(30), val_samples=1),
        module(Solid(30), val_samples=1, seed=1),
        module(Solid(30), balance_groups=True),
        module(Solid(30, side=17)),
        module(Solid(30, captions=lambda i: [f"other {i}"])),
    ]
    assert len({base, *(data.fingerprint for data in others)}) == 9
