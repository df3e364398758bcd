"""Icon sets of the npm package @iconify/json: their licences, icons and names."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagen_pl.data.icon_names import IconName, SetNames
from imagen_pl.data.icon_trade_marks import is_trade_mark
from imagen_pl.data.npm_packages import files_in, read_file
from imagen_pl.errors import UserError

PACKAGE = "@iconify/json@2.2.535"

# Open licences without share-alike and without limits of use, as SPDX names.
LICENCES = (
    "Apache-2.0",
    "BSD-3-Clause",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    "OFL-1.1",
    "Unlicense",
)

_LOGOS = "Logos"  # Iconify's category of sets of logos and trade marks
# Logos in other sets, by the set's own category or by the name: "brand-github", "logo-github", "github-logo".
_LOGO_CATEGORY = re.compile(r"\b(brands?|logos?)\b", re.IGNORECASE)
_LOGO_NAME = re.compile(r"^(brand|logo)-|-logo(-|$)")


@dataclass(frozen=True)
class IconSet:
    """A set as Iconify's collections.json describes it.

    Attributes:
        prefix: short name, for example "tabler".
        name, author, author_url, licence, licence_url: as the set names them; the licence as SPDX name.
        category: Iconify's kind of set, "" for none.
        coloured: whether its icons have colours of their own.
        strokes: whether its icons are drawn with strokes.
        total: number of its icons, without withdrawn ones.
    """

    prefix: str
    name: str
    author: str
    author_url: str
    licence: str
    licence_url: str
    category: str
    coloured: bool
    strokes: bool
    total: int


@dataclass(frozen=True)
class Icon:
    """One icon.

    Attributes:
        name: its name in the set.
        meaning: what the name says.
        svg: its drawing; `currentColor` stands for the ink.
        others: its other names in the set.
        category: the set's own category of it, "" for none.
    """

    name: str
    meaning: IconName
    svg: str
    others: tuple[str, ...]
    category: str


@dataclass
class SetContent:
    """The icons of a set, how to read their names, and what was left out, by reason."""

    icons: list[Icon]
    names: SetNames
    left_out: Counter[str] = field(default_factory=Counter)


def read_sets(archive: Path) -> list[IconSet]:
    """Every set in the package."""
    found = []
    for prefix, info in json.loads(read_file(archive, "package/collections.json")).items():
        licence, author = info.get("license", {}), info.get("author", {})
        found.append(
            IconSet(
                prefix,
                info["name"],
                author.get("name", ""),
                author.get("url", ""),
                licence.get("spdx", licence.get("title", "")),
                licence.get("url", ""),
                info.get("category", ""),
                bool(info.get("palette")),
                "Uses Stroke" in info.get("tags", []),
                info.get("total", 0),
            )
        )
    return found


def open_sets(
    sets: Collection[IconSet], licences: Collection[str] | None = None, wanted: Collection[str] | None = None
) -> list[IconSet]:
    """The sets under the licences, without sets of logos, in order of their prefixes.

    Args:
        sets: all sets.
        licences: SPDX names; None takes `LICENCES`.
        wanted: prefixes to take; None takes all.

    Raises:
        UserError: a licence or a wanted set does not exist, or the choice leaves no set.
    """
    known = {each.licence for each in sets}
    if missing := sorted(set(licences or ()) - known):
        raise UserError(
            f"--licences: no set is under {', '.join(missing)}; they are under {', '.join(sorted(known))}"
        )
    allowed = LICENCES if licences is None else licences
    found = [each for each in sets if each.licence in allowed and each.category != _LOGOS]
    if wanted is not None:
        if missing := sorted(set(wanted) - {each.prefix for each in found}):
            raise UserError(
                f"--sets: {', '.join(missing)} is not among the sets under these licences: see icon-sets at "
                "iconify.design for the names"
            )
        found = [each for each in found if each.prefix in wanted]
    return sorted(found, key=lambda each: each.prefix)


def sets_of_logos(sets: Collection[IconSet]) -> list[str]:
    """Their prefixes."""
    return [each.prefix for each in sets if each.category == _LOGOS]


def read_content(
    archive: Path, sets: Collection[IconSet], emoji: dict[str, str], marks: Collection[str] = ()
) -> Iterator[tuple[IconSet, SetContent]]:
    """The content of each set, in the order of the package.

    Args:
        archive: the package's .tgz file.
        sets: the sets to read.
        emoji: as of `SetNames`.
        marks: names of trade marks.
    """
    by_file = {f"package/json/{each.prefix}.json": each for each in sets}
    for name, read in files_in(archive):
        if name in by_file:
            yield by_file[name], content_of(json.loads(read()), emoji, marks)


def content_of(data: dict[str, Any], emoji: dict[str, str], marks: Collection[str] = ()) -> SetContent:
    """The icons of a set's JSON, each in its largest size, without logos and withdrawn icons."""
    others: dict[str, list[str]] = {}
    for alias, entry in data.get("aliases", {}).items():
        # An alias that turns or flips its parent is another picture.
        if entry.keys() <= {"parent"}:
            others.setdefault(entry["parent"], []).append(alias)
    categories = {name: category for category, names in data.get("categories", {}).items() for name in names}
    names = SetNames(data["icons"], data.get("prefixes"), data.get("suffixes"), emoji)
    left_out: Counter[str] = Counter()
    largest: dict[tuple[str, str], Icon] = {}
    for name, entry in data["icons"].items():
        category = categories.get(name, "")
        if entry.get("hidden"):
            left_out["withdrawn by their set"] += 1
            continue
        meaning = names.read(name)
        if (
            _LOGO_CATEGORY.search(category)
            or _LOGO_NAME.search(name)
            or is_trade_mark(meaning.subject, marks)
        ):
            left_out["logos"] += 1
            continue
        also = tuple(
            other for other in others.get(name, ()) if not is_trade_mark(names.read(other).subject, marks)
        )
        icon = Icon(name, meaning, _svg(entry, data), also, category)
        # Icons without a size are all kept, as their names tell them apart.
        key = (icon.meaning.subject, icon.meaning.variant if icon.meaning.size is not None else name)
        other = largest.get(key)
        if other is not None:
            left_out["smaller sizes of an icon"] += 1
        if other is None or (icon.meaning.size or 0) > (other.meaning.size or 0):
            largest[key] = icon
    return SetContent(list(largest.values()), names, left_out)


def _svg(entry: dict[str, Any], data: dict[str, Any]) -> str:
    """An SVG file of an icon; one that is not square is centred in a square."""
    left, top, width, height = (
        entry.get(key, data.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    side = max(width, height)
    box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}">{entry["body"]}</svg>'
    )
