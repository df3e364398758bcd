"""Open icons, as `imagen-pl data icons` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.data.sources.declaration import SourceDeclaration
from imagen_pl.data.sources.parquet import ParquetSource

if TYPE_CHECKING:
    import pyarrow


class IconSource(ParquetSource):
    """Icons of many sets, each with several captions: "bell", "bell, outline", "bell, Tabler Icons, outline".

    One caption has many pictures, since many sets draw the same subject. Splits: train, validation and test
    have subjects of their own; composition has training subjects in a set that does not have them in the
    training split. Pictures that are equal form a group for data.balance_groups.

    Args:
        path: the folder that `imagen-pl data icons` wrote.
        sets: the sets to take, by their names as in captions, for example "Tabler Icons"; None takes all.
        subject_captions: caption with the subject alone, "bell"; the set and the kind are then left open.
    """

    def __init__(self, path: str, sets: list[str] | None = None, subject_captions: bool = False) -> None:
        super().__init__(path, group_column="picture")
        self.sets, self.subject_captions = sets, subject_captions

    def declaration(self) -> SourceDeclaration:
        """The credits of ATTRIBUTION.md, which `imagen-pl data icons` writes beside the pictures."""
        credits_file = Path(self.path).expanduser() / "ATTRIBUTION.md"
        if not credits_file.is_file():
            return SourceDeclaration()
        return SourceDeclaration(licence=credits_file.read_text(), captions_may_be_published=True)

    def keeps(self, table: pyarrow.Table, i: int) -> bool:
        return self.sets is None or table["set"][i].as_py() in self.sets

    def _captions(
        self, table: pyarrow.Table, i: int, captions: tuple[str, ...], split: str
    ) -> tuple[str, ...]:
        return (table["words"][i].as_py(),) if self.subject_captions else captions
