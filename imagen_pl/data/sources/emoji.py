"""The emoji data set that is included in the package."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from imagen_pl.data.build_emoji import SHIPPED, STYLES
from imagen_pl.data.sources.declaration import SourceDeclaration, Vocabulary
from imagen_pl.data.sources.parquet import ParquetSource
from imagen_pl.errors import UserError

if TYPE_CHECKING:
    import pyarrow


_CREDITS = (
    "Emoji in three styles: Fluent Emoji (MIT, Microsoft Corporation), Noto Emoji (Apache-2.0, Google "
    "LLC) and Twemoji (CC-BY 4.0, Twitter, Inc and other contributors; Jason Sofonia and Justine De Caires). "
    "If you publish pictures of this model, name these authors."
)


class EmojiSource(ParquetSource):
    """Emoji in three styles, with captions such as "cupcake, fluent style".

    Splits: train, validation, test, and composition, which has training subjects in a style that they do not
    have in the training split.

    Args:
        path: file made by `imagen-pl data emoji`, for other sizes; None takes the included one, 64 px.
        styles: the styles to take; None takes all three.
        tag_captions: caption a training image with emojibase's tags as well, half of the time: "cupcake
            (sprinkles, treat), fluent style" and "bakery, sprinkles, treat, fluent style". Other splits use
            the names alone.
        subject_captions: caption a training image with its name alone, "cupcake", a third of the time. Such a
            caption has one image in each style.
        style_captions: caption with the style alone, "fluent style", in every split. These are the domains of
            a Translator.
    """

    def __init__(
        self,
        path: str | None = None,
        styles: list[Literal["fluent", "noto", "twemoji"]] | None = None,
        tag_captions: bool = False,
        subject_captions: bool = False,
        style_captions: bool = False,
    ) -> None:
        super().__init__(str(SHIPPED) if path is None else path)
        self.ships_with_package = path is None
        self.styles = styles
        self.tag_captions = tag_captions
        self.subject_captions = subject_captions
        self.style_captions = style_captions
        if style_captions and (subject_captions or tag_captions):
            raise UserError(
                "data.source: style_captions leaves the subject out, which subject_captions and tag_captions "
                "name: set both to false"
            )

    def declaration(self) -> SourceDeclaration:
        """For a user's own file only the styles are known, and its captions must not be published."""
        shipped = self.ships_with_package
        return SourceDeclaration(
            licence=_CREDITS if shipped else None,
            styles=tuple(self.styles or STYLES),
            captions_may_be_published=shipped,
        )

    def vocabulary(self) -> Vocabulary:
        """Names and styles of the training emoji; with `style_captions`, the styles are the subjects."""
        styles = tuple(f"{style} style" for style in self.styles or STYLES)
        if self.style_captions:
            return Vocabulary("domains", styles)
        from pyarrow import parquet

        names: dict[str, None] = {}
        for file in self._files():
            table = parquet.read_table(file, columns=["name", "style", "split"])
            for i, cell in enumerate(table.to_pylist()):
                if cell["split"] == "train" and self.keeps(table, i):
                    names[cell["name"]] = None
        return Vocabulary("emoji", tuple(names), styles, self.subject_captions)

    def keeps(self, table: pyarrow.Table, i: int) -> bool:
        return self.styles is None or table["style"][i].as_py() in self.styles

    def _captions(
        self, table: pyarrow.Table, i: int, captions: tuple[str, ...], split: str
    ) -> tuple[str, ...]:
        if self.style_captions:
            return (f"{table['style'][i].as_py()} style",)
        captions = self._with_tags(table, i, captions, split)
        if not self.subject_captions or split != "train":
            return captions
        return captions * 2 + (table["name"][i].as_py(),) * len(captions)

    def _with_tags(
        self, table: pyarrow.Table, i: int, captions: tuple[str, ...], split: str
    ) -> tuple[str, ...]:
        tags = table["tags"][i].as_py() if self.tag_captions and split == "train" else []
        if not tags:
            return captions
        name, style, tones = (table[column][i].as_py() for column in ("name", "style", "skin_tone"))
        draw = random.Random(self._name(Path(self.path), table, i))  # the same tags in every run
        some = [sorted(draw.sample(tags, min(count, len(tags)))) for count in (2, 3)]
        skin = [f"{tone} skin tone" for tone in tones.split(", ") if tone]
        by_tags = (
            f"{name} ({', '.join(some[0])}), {style} style",
            ", ".join([*some[1], *skin, f"{style} style"]),
        )
        return captions * len(by_tags) + by_tags

    def _groups(self, table: pyarrow.Table) -> list[str]:
        """One group for the skin tones of a subject in one style."""
        pairs = zip(table["subject"].to_pylist(), table["style"].to_pylist(), strict=True)
        return [f"{subject} {style}" for subject, style in pairs]

    def _name(self, file: Path, table: pyarrow.Table, i: int) -> str:
        return str(table["image"][i]["path"].as_py())
