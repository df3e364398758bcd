"""Local Parquet files, in the layout of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import SPLITS, Row, Source, as_captions, caption_column, existing
from imagen_pl.errors import UserError

if TYPE_CHECKING:
    import pyarrow

_LARGEST = 4 * 2**30


class ParquetSource(Source):
    """A Parquet file, or a folder of them, loaded into memory with compressed images.

    A column of images has bytes, or structs of `bytes` and `path`, as `datasets` writes them. The
    split of a row is its cell in the column `split` if there is one, else the first word of its
    file's name (train-00000-of-00002.parquet) or folder, else train.

    Args:
        path: a .parquet file, or a folder of such files.
        image_column: the column of images.
        caption_column: the column of captions, strings or lists of them; None takes the first of
            caption, captions, text, prompt, description, sentences.
        group_column: the column whose value near-duplicate images share, for data.balance_groups; None
            forms no groups.
    """

    def __init__(
        self,
        path: str,
        image_column: str = "image",
        caption_column: str | None = None,
        group_column: str | None = None,
    ) -> None:
        self.path = path
        self.image_column = image_column
        self.caption_column = caption_column
        self.group_column = group_column
        self._images: list[pyarrow.ChunkedArray] = []

    def load(self, problems: SkippedImages) -> dict[str, list[Row]]:
        self._images = []
        files = self._files()
        splits: dict[str, list[Row]] = {}
        for number, file in enumerate(files):
            table = self._read(file)
            self._images.append(table[self.image_column])
            column = caption_column(table.column_names, self.caption_column, str(file))
            captions = table[column].to_pylist()
            split_cells = table["split"].to_pylist() if "split" in table.column_names else None
            groups = self._groups(table)
            for i, cell in enumerate(captions):
                split = _split_of_file(file) if split_cells is None else str(split_cells[i])
                split = SPLITS.get(split, split)
                words = self._captions(table, i, as_captions(cell), split)
                row = Row(self._name(file, table, i), words, (number, i), groups[i])
                if self.keeps(table, i):
                    splits.setdefault(split, []).append(row)
        if not any(splits.values()):
            raise UserError(f"{self.path} holds no rows")
        return splits

    def image(self, row: Row) -> bytes | Path:
        file, i = row.place
        cell = self._images[file][i].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if isinstance(data, bytes):
            return data
        path = cell.get("path") if isinstance(cell, dict) else cell
        if isinstance(path, str):
            return Path(self.path).parent / path
        raise OSError("the cell holds no image")

    def keeps(self, table: pyarrow.Table, i: int) -> bool:
        """Whether row i belongs to the source."""
        return True

    def _captions(
        self, table: pyarrow.Table, i: int, captions: tuple[str, ...], split: str
    ) -> tuple[str, ...]:
        """The captions of row i; training samples one each time."""
        return captions

    def _groups(self, table: pyarrow.Table) -> list[str]:
        """The group of each row, shared by near-duplicates."""
        if self.group_column is None:
            return [""] * len(table)
        if self.group_column not in table.column_names:
            raise UserError(
                f"{self.path} has no column {self.group_column}: it has {', '.join(table.column_names)}; "
                "name the column of groups with group_column"
            )
        return [str(cell) for cell in table[self.group_column].to_pylist()]

    def _name(self, file: Path, table: pyarrow.Table, i: int) -> str:
        return f"{file.name}[{i}]"

    def _files(self) -> list[Path]:
        root = existing(self.path)
        files = sorted(root.rglob("*.parquet")) if root.is_dir() else [root]
        if not files:
            raise UserError(f"{self.path} holds no .parquet files")
        size = sum(file.stat().st_size for file in files)
        if size > _LARGEST:
            raise UserError(
                f"{self.path} has {size / 2**30:.1f} GB of Parquet files, too much to hold in memory: use "
                "imagen_pl.data.sources.huggingface.HuggingFaceSource, which reads them from disk"
            )
        return files

    def _read(self, file: Path) -> pyarrow.Table:
        import pyarrow
        from pyarrow import parquet

        try:
            table = parquet.read_table(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
        if self.image_column not in table.column_names:
            raise UserError(
                f"{file} has no column {self.image_column}: it has {', '.join(table.column_names)}; "
                "say which holds the images with image_column"
            )
        return table

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__


def _split_of_file(file: Path) -> str:
    for word in (file.stem.split("-")[0].split(".")[0], file.parent.name):
        if word.lower() in SPLITS:
            return word.lower()
    return "train"
