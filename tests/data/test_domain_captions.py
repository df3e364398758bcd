"""Sources whose captions are domains, without a subject: icons by set and kind, emoji by style."""

from __future__ import annotations

from collections import Counter

import pytest

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Source
from imagen_pl.data.sources.emoji import EmojiSource
from imagen_pl.data.sources.icons import IconSource, domain_of
from imagen_pl.errors import UserError
from tests.helpers.image_files import module, validation_batches

PHOSPHOR = {f"Phosphor, {kind}" for kind in ("thin", "light", "regular", "bold", "fill", "duotone")}


def captions_of(source: Source) -> dict[str, Counter[tuple[str, ...]]]:
    return {
        split: Counter(row.captions for row in rows) for split, rows in source.load(SkippedImages()).items()
    }


def test_domains_of_icons_are_sets_and_kinds_in_every_split() -> None:
    found = captions_of(IconSource(sets=["Phosphor", "Lucide"], set_captions=True))
    assert set(found) == {"train", "validation", "test", "composition"}
    for captions in found.values():
        assert set(captions) >= {(domain,) for domain in PHOSPHOR}
        assert all(len(each) == 1 and "," in each[0] for each in captions)
    plain = captions_of(IconSource(sets=["Phosphor", "Lucide"]))
    assert {split: sum(c.values()) for split, c in found.items()} == {
        split: sum(c.values()) for split, c in plain.items()
    }


def test_a_set_without_kinds_is_its_own_domain() -> None:
    assert domain_of("Phosphor", "fill") == "Phosphor, fill"
    found = captions_of(IconSource(sets=["Line Awesome"], set_captions=True))
    assert ("Line Awesome",) in found["train"]


def test_domains_of_emoji_are_styles_in_every_split() -> None:
    found = captions_of(EmojiSource(styles=["fluent", "noto"], style_captions=True))
    for captions in found.values():
        assert set(captions) == {("fluent style",), ("noto style",)}


def test_captions_without_a_subject_exclude_those_with_one() -> None:
    with pytest.raises(UserError, match="subject_captions leaves the set out and set_captions the subject"):
        IconSource(subject_captions=True, set_captions=True)
    for other in ("subject_captions", "tag_captions"):
        with pytest.raises(UserError, match="style_captions leaves the subject out"):
            EmojiSource(style_captions=True, **{other: True})  # type: ignore[arg-type]


def test_few_captions_work_in_batches_validation_and_checkpoints() -> None:
    source = IconSource(sets=["Phosphor"], set_captions=True)
    data: CaptionedImages = module(source, batch_size=8, pictures_per_caption=4, val_samples=16)
    data.setup()
    assert set(data.captions() or []) == PHOSPHOR
    assert sorted(data.example_captions()) == sorted(PHOSPHOR)  # each once
    batch = next(iter(data.train_dataloader()))
    assert set(Counter(batch.captions).values()) <= {4, 8}
    scored = [caption for batch in validation_batches(data) for caption in batch.captions]
    assert len(scored) == 16
    assert set(scored) <= PHOSPHOR
    assert len(data.batch_to_watch(6).captions) == 6


def test_example_captions_are_spread_where_there_are_many() -> None:
    data = module(EmojiSource(styles=["noto"]))
    data.setup()
    assert len(data.example_captions(5)) == 5
