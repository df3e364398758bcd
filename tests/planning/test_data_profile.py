from __future__ import annotations

from pathlib import Path

import pytest

from imagen_pl.errors import UserError
from imagen_pl.planning.data_profile import profile
from tests.helpers.planning import write_set, write_shards


def test_folder_with_one_caption_per_image_is_profiled(tmp_path: Path) -> None:
    found = profile(str(write_set(tmp_path / "photos", 100, width=48, height=32)))

    assert (found.images, found.held_out, found.side) == (95, 5, 32)
    assert "95 images to train on (5 more are held out for validation)" in found.lines()[0]
    assert (found.captions_per_image, found.images_per_caption, found.shared) == (1, 1, 0)
    assert found.cropped == 1  # a square of 32 px is two thirds of 48
    assert found.source_class == "imagen_pl.data.sources.folder.FolderSource"


def test_images_per_caption_are_counted(tmp_path: Path) -> None:
    found = profile(str(write_set(tmp_path / "photos", 40, width=16, height=16, images_a_caption=20)))

    assert (found.images_per_caption, found.shared) == (20, 1)


def test_captions_per_image_are_counted(tmp_path: Path) -> None:
    found = profile(str(write_set(tmp_path / "photos", 20, width=16, height=16, captions=5)))

    assert (found.captions_per_image, found.images_per_caption, found.shared) == (5, 1, 0)


def test_near_duplicate_emoji_count_once() -> None:
    found = profile("emoji")

    assert (found.images, found.groups, found.side, found.source_args) == (8587, 4457, 64, {})
    assert "held out" not in found.lines()[0]  # it has a validation split of its own


def test_size_of_a_stream_is_estimated_from_its_shards(tmp_path: Path) -> None:
    found = profile(str(write_shards(tmp_path / "shards", shards=4, images=10, side=24)))

    assert found.is_stream
    assert (found.images, found.side, found.validates) == (30, 24, True)  # the last shard is held out


def test_one_shard_holds_nothing_out(tmp_path: Path) -> None:
    found = profile(str(write_shards(tmp_path / "shards", shards=1, images=10, side=24)))

    assert (found.images, found.validates) == (10, False)


def test_unreadable_images_are_counted(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "photos", 3, width=16, height=16)
    for file in folder.glob("*.png"):
        file.write_bytes(b"no image")

    with pytest.raises(UserError, match="no image of 3 can be read"):
        profile(str(folder))
