"""The emoji that ship with the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from imagen_pl.data.emoji import SHIPPED
from imagen_pl.data.sources.parquet import ParquetSource

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow


class EmojiSource(ParquetSource):
    """Emoji drawn by three hands; "cupcake, fluent style" is a caption.

    Splits: train, validation, test, and composition, which holds train subjects drawn by a hand that
    training never showed them in.

    Args:
        path: file made by `imagen-pl data emoji`, for other sizes; None takes the one that ships, 64 px.
        styles: the hands to take; None takes all three.
    """

    def __init__(
        self, path: str | None = None, styles: list[Literal["fluent", "noto", "twemoji"]] | None = None
    ) -> None:
        super().__init__(str(SHIPPED) if path is None else path)
        self.styles = styles

    def keeps(self, table: pyarrow.Table, i: int) -> bool:
        return self.styles is None or table["style"][i].as_py() in self.styles

    def _groups(self, table: pyarrow.Table) -> list[str]:
        """The skin tones of a subject in one hand."""
        pairs = zip(table["subject"].to_pylist(), table["style"].to_pylist(), strict=True)
        return [f"{subject} {style}" for subject, style in pairs]

    def _name(self, file: Path, table: pyarrow.Table, i: int) -> str:
        return str(table["image"][i]["path"].as_py())
