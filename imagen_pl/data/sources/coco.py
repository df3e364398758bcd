"""COCO captions (arXiv:1504.00325): photographs with five captions each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import SPLITS, Row, Source, as_captions, existing
from imagen_pl.errors import UserError


class CocoSource(Source):
    """Images with the captions of COCO's JSON files; training samples one of an image's captions each time.

    Args:
        path: a captions JSON file, such as captions_train2017.json; or COCO's folder, with the
            captions_*.json files in it or in its `annotations` folder. A file whose name begins with "val"
            after captions_ is the validation split, "test" the test split, any other is for training.
        images: folder of the image files; None searches beside the JSON file and one folder up for
            train2017 (the last part of captions_train2017.json), images/train2017 and images, and
            finally the JSON file's own folder.
    """

    def __init__(self, path: str, images: str | None = None) -> None:
        self.path = path
        self.images = images

    def load(self, problems: SkippedImages) -> dict[str, list[Row]]:
        root = existing(self.path)
        if root.is_dir():
            files = sorted([*root.glob("captions_*.json"), *root.glob("annotations/captions_*.json")])
            if not files:
                raise UserError(
                    f"{self.path} holds no captions_*.json, and neither does its annotations folder: give "
                    "the JSON file itself as data.source.path"
                )
        else:
            files = [root]
        splits: dict[str, list[Row]] = {}
        for file in files:
            splits.setdefault(_split_of(file), []).extend(self._rows(file, problems))
        if len(files) == 1:  # a single file is the training split, whatever its name
            splits = {"train": next(iter(splits.values()))}
        return splits

    def image(self, row: Row) -> Path:
        return Path(row.place)

    def _rows(self, file: Path, problems: SkippedImages) -> list[Row]:
        images, annotations = _read(file)
        captions: dict[Any, list[str]] = {}
        for one in annotations:
            captions.setdefault(one["image_id"], []).extend(as_captions(one["caption"]))
        folder = self._folder(file, images[0]["file_name"])
        rows = []
        for one in images:
            if one["id"] in captions:
                name = one["file_name"]
                rows.append(Row(name, tuple(captions[one["id"]]), str(folder / name)))
            else:
                problems.add("without a caption", one["file_name"])
        if not rows:
            raise UserError(f"{file}: none of its {len(images)} images has a caption")
        return rows

    def _folder(self, file: Path, first: str) -> Path:
        if self.images is not None:
            return existing(self.images)
        part = file.stem.removeprefix("captions_")
        places = [
            base / below
            for base in (file.parent, file.parent.parent)
            for below in (part, f"images/{part}", "images")
        ]
        for place in (*places, file.parent):
            if (place / first).is_file():
                return place
        raise UserError(
            f"{first}, the first image that {file} names, is not in {', '.join(map(str, places[:2]))} or the "
            "other usual places: give the images' folder as data.source.images"
        )


def _split_of(file: Path) -> str:
    name = file.stem.removeprefix("captions_").lower()
    return next((split for word, split in SPLITS.items() if name.startswith(word)), "train")


def _read(file: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from None
    wanted = {"images": ("id", "file_name"), "annotations": ("image_id", "caption")}
    for part, keys in wanted.items():
        found = data.get(part) if isinstance(data, dict) else None
        if not isinstance(found, list) or not found or any(key not in one for one in found for key in keys):
            raise UserError(
                f"{file} is no COCO captions file: it needs a list {part!r} of objects with "
                f"{' and '.join(keys)}"
            )
    return data["images"], data["annotations"]
