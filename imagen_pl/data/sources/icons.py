"""Open icons, as `imagen-pl data icons` writes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row
from imagen_pl.data.sources.declaration import SourceDeclaration, Vocabulary
from imagen_pl.data.sources.parquet import ParquetSource
from imagen_pl.errors import UserError

if TYPE_CHECKING:
    import pyarrow


SHIPPED = Path(__file__).parents[1] / "shipped" / "icons64"


@dataclass(frozen=True)
class IconRow:
    """One icon with what is known of it.

    full_caption: names subject, set and kind.
    picture: the same for icons that look the same.
    """

    words: str
    set: str
    kind: str
    split: str
    full_caption: str
    image: bytes
    picture: str = ""


class IconSource(ParquetSource):
    """Icons of many sets, each with several captions: "bell", "bell, outline", "bell, Tabler Icons, outline".

    One caption has many pictures, since many sets draw the same subject. Splits: train, validation and test
    have subjects of their own; composition has training subjects in a set that does not have them in the
    training split. Pictures that are equal form a group for data.balance_groups.

    Args:
        path: the folder that `imagen-pl data icons` wrote; None takes the icons that are included in the
            package, 64 px, of subjects that at least 14 sets draw.
        sets: the sets to take, by their names as in captions, for example "Tabler Icons"; None takes all.
        subject_captions: caption with the subject alone, "bell"; the set and the kind are then left open.
        least_pictures: leave out subjects that have fewer pictures than this in the sets taken.
        set_captions: caption with set and kind alone, "Tabler Icons, outline", in every split. These are the
            domains of a Translator.
    """

    def __init__(
        self,
        path: str | None = None,
        sets: list[str] | None = None,
        subject_captions: bool = False,
        least_pictures: int = 1,
        set_captions: bool = False,
    ) -> None:
        super().__init__(str(SHIPPED) if path is None else path, group_column="picture")
        if subject_captions and set_captions:
            raise UserError(
                "data.source: subject_captions leaves the set out and set_captions the subject: choose one"
            )
        self.sets, self.subject_captions, self.least_pictures = sets, subject_captions, least_pictures
        self.set_captions = set_captions
        self._pictures: Counter[str] = Counter()  # by subject

    def load(self, problems: SkippedImages) -> dict[str, list[Row]]:
        self._count_pictures()
        return super().load(problems)

    def declaration(self) -> SourceDeclaration:
        """The credits of ATTRIBUTION.md, which `imagen-pl data icons` writes beside the pictures."""
        credits_file = Path(self.path).expanduser() / "ATTRIBUTION.md"
        if not credits_file.is_file():
            return SourceDeclaration()
        _heading, _, credit = credits_file.read_text(encoding="utf-8").partition("\n\n")
        return SourceDeclaration(licence=credit, captions_may_be_published=True)

    def vocabulary(self) -> Vocabulary | None:
        """Subjects and kinds of the training icons; with `set_captions`, the domains are the subjects."""
        self._count_pictures()
        words, kinds, domains = Counter[str](), Counter[str](), Counter[str]()
        for table in self._columns(["subject", "words", "set", "kind", "split"]):
            for cell in self._kept(table).to_pylist():
                if cell["split"] == "train":
                    words[cell["words"]] += 1
                    kinds[cell["kind"]] += 1
                    domains[domain_of(cell["set"], cell["kind"])] += 1
        if self.set_captions:
            return Vocabulary("domains", _by_frequency(domains))
        attributes = () if self.subject_captions else _by_frequency(kinds)
        return Vocabulary("icons", _by_frequency(words), attributes)

    def icon_rows(self) -> list[IconRow]:
        """All icons that the source takes, of every split, in the order of the files."""
        self._count_pictures()
        rows = []
        for table in self._columns(
            ["subject", "words", "set", "kind", "split", "captions", "image", "picture"]
        ):
            for cell in self._kept(table).to_pylist():
                full = next(each for each in cell["captions"] if f", {cell['set']}" in each)
                known = {column: cell[column] for column in ("words", "set", "kind", "split", "picture")}
                rows.append(IconRow(**known, full_caption=full, image=cell["image"]["bytes"]))
        return rows

    def summary(self) -> list[str]:
        """Subjects by number of pictures, the largest sets, licences, and the most frequent words."""
        self._count_pictures()
        columns = ["subject", "set", "licence"]
        subjects, sets, licences = Counter[str](), Counter[str](), Counter[str]()
        for table in self._columns(columns):
            kept = self._kept(table)
            for column, counter in zip(columns, (subjects, sets, licences), strict=True):
                counter.update(kept[column].to_pylist())
        words = Counter(word for subject, n in subjects.items() for word in subject.split("-") * n)
        in_many = [sum(n >= least for n in subjects.values()) for least in (2, 8, 50)]
        return [
            f"subjects   {len(subjects):,}: {in_many[0]:,} with 2 pictures or more, {in_many[1]:,} with 8, "
            f"{in_many[2]:,} with 50",
            f"           most pictures: {_top(subjects)}",
            f"sets       {len(sets):,}: {_top(sets)}",
            f"licences   {_top(licences, len(licences))}",
            f"words      {len(words):,}: {_top(words)}",
        ]

    def _columns(self, columns: list[str]) -> Iterator[pyarrow.Table]:
        from pyarrow import parquet

        for file in self._files():
            yield parquet.read_table(file, columns=columns)

    def _count_pictures(self) -> None:
        self._pictures = Counter()
        if self.least_pictures > 1:
            for table in self._columns(["subject", "set"]):
                rows = table.to_pylist()
                self._pictures.update(
                    row["subject"] for row in rows if self.sets is None or row["set"] in self.sets
                )

    def keeps(self, table: pyarrow.Table, i: int) -> bool:
        if self.sets is not None and table["set"][i].as_py() not in self.sets:
            return False
        return self.least_pictures == 1 or self._pictures[table["subject"][i].as_py()] >= self.least_pictures

    def _kept(self, table: pyarrow.Table) -> pyarrow.Table:
        import pyarrow

        kept = [self.keeps(table, i) for i in range(len(table))]
        return table.filter(pyarrow.array(kept, pyarrow.bool_()))

    def _captions(
        self, table: pyarrow.Table, i: int, captions: tuple[str, ...], split: str
    ) -> tuple[str, ...]:
        if self.set_captions:
            return (domain_of(table["set"][i].as_py(), table["kind"][i].as_py()),)
        return (table["words"][i].as_py(),) if self.subject_captions else captions


def domain_of(icon_set: str, kind: str) -> str:
    """The caption of an icon by its set and kind alone, for example "Phosphor, duotone"."""
    return f"{icon_set}, {kind}" if kind else icon_set


def _by_frequency(counter: Counter[str]) -> tuple[str, ...]:
    return tuple(name for name, _ in counter.most_common() if name)


def _top(counter: Counter[str], most: int = 6) -> str:
    found = ", ".join(f"{name} {count:,}" for name, count in counter.most_common(most))
    return found + (", ..." if len(counter) > most else "")
