"""COCO captions: files of annotations, and one of five captions each time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.coco import CocoSource
from imagen_pl.errors import UserError
from tests.helpers.image_files import module, write_images


def write_coco(file: Path, names: list[str], captions: int = 5) -> Path:
    images = [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)]
    annotations = [
        {"id": n, "image_id": image["id"], "caption": f"{image['file_name']} caption {n} \n"}
        for n in range(captions)
        for image in images
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return file


def test_original_coco_folder_is_read(tmp_path: Path) -> None:
    write_images(tmp_path / "train2017", ["a.png", "b.png"])
    write_images(tmp_path / "val2017", ["c.png"])
    write_coco(tmp_path / "annotations/captions_train2017.json", ["a.png", "b.png"])
    write_coco(tmp_path / "annotations/captions_val2017.json", ["c.png"])
    source = CocoSource(str(tmp_path))
    splits = source.load(SkippedImages())
    assert {split: [row.name for row in rows] for split, rows in splits.items()} == {
        "train": ["a.png", "b.png"],
        "validation": ["c.png"],
    }
    assert splits["train"][0].captions == tuple(f"a.png caption {n}" for n in range(5))
    assert source.image(splits["validation"][0]) == tmp_path / "val2017/c.png"


def test_single_json_file_with_an_images_folder_is_read(tmp_path: Path) -> None:
    write_images(tmp_path / "pictures", ["a.png", "b.png"])
    file = write_coco(tmp_path / "captions_val2014.json", ["a.png", "b.png"])
    splits = CocoSource(str(file), images=str(tmp_path / "pictures")).load(SkippedImages())
    assert [row.name for row in splits["train"]] == ["a.png", "b.png"]


def test_all_five_captions_are_drawn_evenly(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    file = write_coco(tmp_path / "captions.json", ["a.png", "b.png"])
    data = module(CocoSource(str(file)), val_fraction=0, batch_size=8, epoch_kimg=1)
    assert len(data.captions() or []) == 10
    drawn = Counter(caption for batch in data.train_dataloader() for caption in batch.captions)
    assert len(drawn) == 10
    assert all(70 < count < 130 for count in drawn.values())
    again = [caption for batch in data.train_dataloader() for caption in batch.captions]
    assert Counter(again) == drawn


def test_images_without_captions_and_missing_files_are_counted(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    file = write_coco(tmp_path / "captions.json", ["a.png", "b.png", "gone.png"])
    content: dict[str, Any] = json.loads(file.read_text())
    content["images"].append({"id": 99, "file_name": "silent.png"})
    file.write_text(json.dumps(content))
    data = module(CocoSource(str(file)), val_fraction=0)
    assert len(data._rows.train) == 2
    assert data._rows.problems.summary() == "1 missing (gone.png), 1 without a caption (silent.png)"


def test_bad_coco_files_give_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.json does not exist"):
        module(CocoSource(str(tmp_path / "nowhere.json"))).setup()
    with pytest.raises(
        UserError, match=r"holds no captions_\*\.json, and neither does its annotations folder"
    ):
        module(CocoSource(str(tmp_path))).setup()
    file = tmp_path / "captions.json"
    file.write_text('{"images": [')
    with pytest.raises(UserError, match=r"captions.json cannot be read as JSON: "):
        module(CocoSource(str(file))).setup()
    for content in ("[]", '{"images": [{"id": 1}], "annotations": []}'):
        file.write_text(content)
        with pytest.raises(UserError, match=r"is no COCO captions file: it needs a list 'images' of objects"):
            module(CocoSource(str(file))).setup()
    write_coco(file, ["a.png"])
    with pytest.raises(UserError, match=r"a.png, the first image that .* data.source.images"):
        module(CocoSource(str(file))).setup()
    with pytest.raises(UserError, match=r"pictures does not exist"):
        module(CocoSource(str(file), images=str(tmp_path / "pictures"))).setup()
