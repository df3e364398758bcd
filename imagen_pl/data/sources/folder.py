"""A folder of images with their captions beside them."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import (
    CAPTION_COLUMNS,
    IMAGE_SUFFIXES,
    SPLITS,
    Row,
    Source,
    as_captions,
    caption_column,
    existing,
)
from imagen_pl.errors import UserError

_METADATA = ("metadata.jsonl", "metadata.csv")
_HOW = (
    'write metadata.jsonl there, one line an image, as {"file_name": "cat.jpg", "text": "a cat"}, '
    "or put cat.txt beside cat.jpg; where folders are classes, set folder_captions to true; for a GAN "
    "without captions, set caption"
)


class FolderSource(Source):
    """A folder of captioned images, in either of two layouts, with or without subfolders.

    Captions are in metadata.jsonl or metadata.csv (columns file_name and a caption; the layout of
    Hugging Face's imagefolder), in the folder itself or in subfolders; or in a .txt file beside each
    image, one caption a line. Top folders named train, validation (val, valid, dev) and test are splits.
    With `folder_captions` or `caption` no captions are read.

    Args:
        path: the folder.
        caption_column: column of the metadata with the caption, or with a list of captions; None
            takes the first of caption, captions, text, prompt, description, sentences.
        folder_captions: the caption of an image is the name of its folder, as "red fox" of
            train/red_fox/0001.jpg (the layout of torchvision's ImageFolder).
        caption: one caption for all images, as for a GAN without captions.
    """

    def __init__(
        self,
        path: str,
        caption_column: str | None = None,
        folder_captions: bool = False,
        caption: str | None = None,
    ) -> None:
        self.path = path
        self.caption_column = caption_column
        self.folder_captions = folder_captions
        self.caption = caption

    def load(self, problems: SkippedImages) -> dict[str, list[Row]]:
        root = existing(self.path)
        if self.folder_captions and self.caption is not None:
            raise UserError(
                f"{self.path}: set folder_captions or caption, not both: each says what the captions are"
            )
        images, captions = self.images()
        if self.folder_captions:
            captions = {image: self._folder_caption(image, root) for image in images}
        elif self.caption is not None:
            captions = dict.fromkeys(images, as_captions(self.caption))
        for image in images - captions.keys():
            text = image.with_suffix(".txt")
            if text.is_file():
                captions[image] = captions_in(text)
        if not captions.keys() & images:
            raise UserError(f"{self.path}: none of its {len(images)} images has a caption: {_HOW}")
        splits: dict[str, list[Row]] = {}
        for file in sorted(images | captions.keys()):
            name = file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
            if file not in images:
                problems.add("missing", name)
            elif file not in captions:
                problems.add("without a caption", name)
            else:
                split = SPLITS.get(name.split("/")[0].lower(), "train") if "/" in name else "train"
                splits.setdefault(split, []).append(Row(name, captions[file], str(file)))
        return splits

    def _folder_caption(self, image: Path, root: Path) -> tuple[str, ...]:
        folders = image.relative_to(root).parts[:-1]
        if not folders or (len(folders) == 1 and folders[0].lower() in SPLITS):
            raise UserError(
                f"{image}: folder_captions needs each image in a folder of its class, as "
                f"{root}/train/cat/{image.name}"
            )
        return as_captions(folders[-1].replace("_", " "))

    def image(self, row: Row) -> Path:
        return Path(row.place)

    def images(self) -> tuple[set[Path], dict[Path, tuple[str, ...]]]:
        """The image files, and the captions in the metadata, by file; such a file may be missing.

        A .txt beside an image is used only if the metadata does not list the image.

        Raises:
            UserError: there is no such folder, it holds no images, or its metadata is broken.
        """
        root = existing(self.path)
        if not root.is_dir():
            raise UserError(f"{self.path} is a file, not a folder of images: {_hint(root)}")
        files = sorted(p for p in root.rglob("*") if not _hidden(p.relative_to(root)))
        images = {p for p in files if p.suffix.lower() in IMAGE_SUFFIXES}
        if not images:
            raise UserError(
                f"{self.path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}): check the path"
            )
        captions: dict[Path, tuple[str, ...]] = {}
        for metadata in (p for p in files if p.name in _METADATA):
            for file, found in self._read_metadata(metadata):
                captions[file] = captions.get(file, ()) + found
        return images, captions

    def _read_metadata(self, file: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
        rows = _jsonl_rows(file) if file.suffix == ".jsonl" else _csv_rows(file)
        for number, row in rows:
            where = f"{file}:{number}"
            if not isinstance(row.get("file_name"), str) or not row["file_name"]:
                raise UserError(f"{where} has no file_name: it has {', '.join(map(str, row))}")
            if self.caption_column is None and not any(c in row for c in CAPTION_COLUMNS):
                column = caption_column(list(row), None, where)  # raises an error that lists the usual names
            else:
                column = self.caption_column or next(c for c in CAPTION_COLUMNS if c in row)
            yield file.parent / row["file_name"], as_captions(row.get(column))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _hint(file: Path) -> str:
    if file.suffix == ".parquet":
        return "use imagen_pl.data.sources.parquet.ParquetSource"
    if file.suffix == ".json":
        return "use imagen_pl.data.sources.coco.CocoSource"
    if file.suffix == ".tar":
        return "use imagen_pl.data.sources.webdataset.WebDatasetSource"
    return "give the folder that holds it"


def captions_in(file: Path) -> tuple[str, ...]:
    """The captions of a .txt file, one a line. Raises UserError if it is not UTF-8."""
    return as_captions(_text(file).split("\n"))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{file}, line {line}: is not UTF-8; save the file as UTF-8, for example with "
            f"`iconv -f latin1 -t utf-8 {shlex.quote(str(file))} > new{file.suffix}` if it is Latin-1"
        ) from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def _jsonl_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}:{number} is not JSON ({error}): each line must be one object") from None
        if not isinstance(row, dict):
            raise UserError(f"{file}:{number} is not a JSON object: write {{...}} on each line")
        yield number, row


def _csv_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_text(file), newline=""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{file}:{reader.line_num} is not CSV: {error}") from None
