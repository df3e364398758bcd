"""Data sets of the `datasets` library: a name on the Hugging Face hub, a folder, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import SPLITS, Row, Source, as_captions, caption_column
from imagen_pl.errors import UserError


class HuggingFaceSource(Source):
    """A data set read with the `datasets` library, which keeps it on disk and reads it row by row.

    Args:
        path: name on the hub, such as user/captioned-flowers; a folder or script for `load_dataset`;
            the name of a file format (parquet, webdataset, imagefolder) together with
            `data_files`; or a folder written by `save_to_disk`.
        name: the data set's configuration, if it has several.
        data_files: files to read, for a file format as `path`; wild cards are allowed.
        revision: branch, tag or commit on the hub.
        image_column: the column of images.
        caption_column: the column of captions, strings or lists of them, or of class labels, whose names are
            then the captions; None takes the first of caption, captions, text, prompt, description,
            sentences.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        data_files: str | list[str] | dict[str, str] | None = None,
        revision: str | None = None,
        image_column: str = "image",
        caption_column: str | None = None,
    ) -> None:
        self.path = path
        self.name = name
        self.data_files = data_files
        self.revision = revision
        self.image_column = image_column
        self.caption_column = caption_column
        self._splits: dict[str, Any] = {}

    def load(self, problems: SkippedImages) -> dict[str, list[Row]]:
        try:
            import datasets
        except ModuleNotFoundError:
            raise UserError("Hugging Face data sets need a package: pip install datasets") from None

        self._splits = {}
        splits: dict[str, list[Row]] = {}
        for split, table in self._open().items():
            if self.image_column not in table.column_names:
                raise UserError(
                    f"{self.path} has no column {self.image_column}: it has {', '.join(table.column_names)}; "
                    "say which holds the images with image_column"
                )
            column = caption_column(table.column_names, self.caption_column, self.path)
            self._splits[split] = table.select_columns([self.image_column]).cast_column(
                self.image_column, datasets.Image(decode=False)
            )
            rows = splits.setdefault(SPLITS.get(split, split), [])
            feature = table.features[column]
            names = feature.names if isinstance(feature, datasets.ClassLabel) else None
            for i, cell in enumerate(table.select_columns([column])[column]):
                caption = cell if names is None or cell is None else names[cell]
                rows.append(Row(f"{split}[{i}]", as_captions(caption), (split, i)))
        return splits

    def image(self, row: Row) -> bytes | Path:
        split, i = row.place
        cell = self._splits[split][i][self.image_column]
        if cell and cell["bytes"]:
            return bytes(cell["bytes"])
        if cell and cell["path"]:
            return Path(cell["path"])
        raise OSError("the cell holds no image")

    def _open(self) -> dict[str, Any]:
        import datasets

        folder = Path(self.path).expanduser()
        try:
            if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
                found = datasets.load_from_disk(str(folder))
            else:
                found = datasets.load_dataset(
                    str(folder) if folder.exists() else self.path,
                    self.name,
                    data_files=self.data_files,
                    revision=self.revision,
                )
        except Exception as error:  # datasets raises many kinds of errors
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"datasets cannot open {self.path}: {why}") from error
        return dict(found) if isinstance(found, dict) else {"train": found}
