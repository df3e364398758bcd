"""Builds a data set of open icons: the same subjects drawn by many sets.

The icons come from the npm package @iconify/json. `build_icons` draws them and writes one Parquet file a set,
with captions, splits that are a function of the subject, and ATTRIBUTION.md, which credits every set.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from imagen_pl.data.icon_drawing import Background, Drawn, draw_all, icon_renderer
from imagen_pl.data.icon_names import captions_of, emoji_subjects, most_held_out
from imagen_pl.data.icon_sets import (
    LICENCES,
    PACKAGE,
    IconSet,
    SetContent,
    open_sets,
    read_content,
    read_sets,
    sets_of_logos,
)
from imagen_pl.data.icon_trade_marks import trade_marks
from imagen_pl.data.npm_packages import find_packages, read_file
from imagen_pl.data.progress import progress_bar
from imagen_pl.errors import UserError
from imagen_pl.storage.atomic_files import atomic_write

_NAMES = "emojibase-data@17.0.0"
_SUMMARY = "icons.json"
_CHUNK = 64  # icons that a process draws at once
# Mean difference of two thumbnails, 0 to 255, below which they are near-duplicates.
_NEAR = 2.0


@dataclass
class IconsBuilt:
    """What was written, and what was left out.

    Attributes:
        icons: pictures by (split, set's prefix).
        left_out: icons that were left out, by reason.
        subjects: number of subjects.
        licences: pictures by licence.
    """

    icons: Counter[tuple[str, str]] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    subjects: int = 0
    licences: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """The summary that the command prints."""
        by_split: Counter[str] = Counter()
        for (split, _), count in self.icons.items():
            by_split[split] += count
        sets = len({icon_set for _, icon_set in self.icons})
        found = [f"{self.icons.total():,} icons of {self.subjects:,} subjects in {sets} sets"]
        found += [f"{split:<12}{count:>9,}" for split, count in by_split.most_common()]
        found.append("by licence: " + _counts(self.licences))
        if self.left_out:
            found.append("left out: " + _counts(self.left_out))
        return found


def build_icons(
    out: Path,
    size: int = 64,
    licences: Sequence[str] | None = None,
    sets: Sequence[str] | None = None,
    background: Background = "white",
    ink: str = "black",
    packages: Path | None = None,
    jobs: int | None = None,
    least_sets: int = 1,
) -> IconsBuilt:
    """Draw the icons and write them to a folder of Parquet files, one a set.

    A set is finished at once or not at all: after an interruption the same call draws the missing sets.

    Args:
        out: the folder to write.
        size: side of the pictures, 32 to 512 px.
        licences: licences to take, as SPDX names; None takes `LICENCES` of icon_sets.py.
        sets: prefixes of the sets to take; None takes all.
        background: "white", or "transparent" for an alpha channel.
        ink: colour of icons that have none of their own, a name or #rrggbb.
        packages: folder with the npm packages as .tgz files; None fetches them with npm.
        jobs: processes that draw; None takes one for each CPU core.
        least_sets: leave out subjects that fewer sets draw.

    Raises:
        UserError: a setting is out of range, `out` holds something else, or npm, a package or resvg-py is
            missing.
    """
    if not 32 <= size <= 512:
        raise UserError(f"--size {size} is not between 32 and 512")
    draw = partial(draw_all, renderer=icon_renderer(size, background, ink))
    settings = {
        "package": PACKAGE,
        "size": size,
        "licences": sorted(LICENCES if licences is None else licences),
        "sets": None if sets is None else sorted(sets),
        "background": background,
        "ink": ink,
        "least_sets": least_sets,
    }
    unfinished = _start(out, settings)
    found = find_packages([PACKAGE, _NAMES], packages, unfinished)
    all_sets = read_sets(found[PACKAGE])
    chosen = open_sets(all_sets, licences, sets)
    marks = trade_marks(found[PACKAGE], sets_of_logos(all_sets))
    emoji = emoji_subjects(json.loads(read_file(found[_NAMES], "package/en/data.json")))
    todo = [each for each in chosen if not (unfinished / f"{each.prefix}.parquet").is_file()]
    if todo:
        icons, drawn_before = (sum(each.total for each in some) for some in (chosen, set(chosen) - set(todo)))
        with (
            ProcessPoolExecutor(jobs or os.cpu_count()) as pool,
            progress_bar("drawing", icons, " icons", drawn_before) as bar,
        ):
            for icon_set, content in read_content(found[PACKAGE], todo, emoji, marks):
                chunks = [content.icons[i : i + _CHUNK] for i in range(0, len(content.icons), _CHUNK)]
                drawn = [picture for part in pool.map(draw, chunks) for picture in part]
                _write_set(unfinished, icon_set, content, drawn)
                bar.update(icon_set.total)
    built = _finish(unfinished, out, chosen, least_sets)
    _write_text(out / "ATTRIBUTION.md", attribution(chosen, built))
    summary = settings | {"icons": built.icons.total(), "left_out": dict(built.left_out)}
    _write_text(out / _SUMMARY, json.dumps(summary, indent=2))
    shutil.rmtree(unfinished)
    return built


def _start(out: Path, settings: dict[str, Any]) -> Path:
    """The folder of unfinished files, empty or with sets that were drawn with the same settings."""
    if (out / _SUMMARY).exists():
        raise UserError(f"{out} holds finished icons already: delete it, or name another folder with --out")
    unfinished = out / "unfinished"
    noted = unfinished / "settings.json"
    begun = any(unfinished.glob("*.parquet"))
    if begun and noted.is_file() and json.loads(noted.read_text()) != settings:
        raise UserError(
            f"{unfinished} holds icons that were drawn with other settings: delete it, or name another "
            "folder with --out"
        )
    if not noted.is_file() and out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: name a new folder with --out")
    unfinished.mkdir(parents=True, exist_ok=True)
    _write_text(noted, json.dumps(settings))
    return unfinished


# ------------------------------------------------------------------ rows


def _write_set(folder: Path, icon_set: IconSet, content: SetContent, drawn: list[Drawn]) -> None:
    """The Parquet file of a set, with its own splits and with what was left out."""
    rows, left_out = rows_of(icon_set, content, drawn)
    _write(rows, folder / f"{icon_set.prefix}.parquet", left_out)


def rows_of(
    icon_set: IconSet, content: SetContent, drawn: Sequence[Drawn]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The rows of a set without near-duplicates, and the icons left out, by reason."""
    left_out = Counter(content.left_out)
    kept: defaultdict[str, list[np.ndarray]] = defaultdict(list)  # thumbnails by subject
    rows = []
    for icon, picture in zip(content.icons, drawn, strict=True):
        if picture.problem:
            left_out[picture.problem] += 1
            continue
        name = icon.meaning
        thumbnail = np.frombuffer(picture.thumbnail, np.uint8).astype(np.int16)
        if any(np.abs(thumbnail - other).mean() < _NEAR for other in kept[name.subject]):
            left_out["near-duplicates of a subject in a set"] += 1
            continue
        kept[name.subject].append(thumbnail)
        split = content.names.split_of(name.subject, icon_set.prefix)
        # Another name may be a held-out subject's.
        others = [content.names.read(other) for other in icon.others]
        words = [
            other.words for other in others if content.names.split_of(other.subject, icon_set.prefix) == split
        ]
        kind = kind_of(icon_set, name.variant)
        rows.append(
            {
                "image": {"bytes": picture.image, "path": f"{icon_set.prefix}/{icon.name}.webp"},
                "captions": captions_of(name.words, kind, icon_set.name, words),
                "name": f"{icon_set.prefix}:{icon.name}",
                "words": name.words,
                "subject": name.subject,
                "set": icon_set.name,
                "kind": kind,
                "coloured": icon_set.coloured,
                "category": icon.category or icon_set.category,
                "licence": icon_set.licence,
                "author": icon_set.author,
                "picture": picture.digest,
                "split": split,
            }
        )
    return rows, left_out


def kind_of(icon_set: IconSet, variant: str) -> str:
    """The kind that a caption names, for example "outline rounded" or "coloured"; "" if nothing says it."""
    if icon_set.coloured:
        return f"coloured {variant}".strip()
    return variant or ("outline" if icon_set.strokes else "")


def _schema() -> Any:
    import pyarrow

    text = pyarrow.string()
    columns = {
        "image": pyarrow.struct({"bytes": pyarrow.binary(), "path": text}),
        "captions": pyarrow.list_(text),
        "name": text,
        "words": text,
        "subject": text,
        "set": text,
        "kind": text,
        "coloured": pyarrow.bool_(),
        "category": text,
        "licence": text,
        "author": text,
        "picture": text,
        "split": text,
    }
    word = {"dtype": "string", "_type": "Value"}
    features: dict[str, Any] = dict.fromkeys(columns, word)
    features |= {
        "image": {"_type": "Image"},
        "captions": {"feature": word, "_type": "List"},
        "coloured": {"dtype": "bool", "_type": "Value"},
    }
    # Marks the column as images for the `datasets` library.
    return pyarrow.schema(columns, {"huggingface": json.dumps({"info": {"features": features}})})


def _write(rows: list[dict[str, Any]], file: Path, left_out: Counter[str]) -> None:
    import pyarrow

    schema = _schema()
    noted = {**schema.metadata, b"left_out": json.dumps(left_out).encode()}
    _write_table(pyarrow.Table.from_pylist(rows, schema.with_metadata(noted)), file)


def _write_table(table: Any, file: Path) -> None:
    from pyarrow import parquet

    beside = file.with_name(file.name + ".partial")
    parquet.write_table(table, beside, compression="zstd", row_group_size=1024)
    beside.replace(file)


def _finish(unfinished: Path, out: Path, sets: Sequence[IconSet], least_sets: int) -> IconsBuilt:
    """Move the sets to their place, each picture in one split only, whatever its names are.

    Subjects that fewer than `least_sets` sets draw are left out.
    """
    import pyarrow
    from pyarrow import parquet

    splits: defaultdict[str, set[Any]] = defaultdict(set)
    sets_of: Counter[str] = Counter()  # number of sets by subject
    for table in _tables(unfinished, sets, ["picture", "split", "subject"]):
        for picture, split in zip(table["picture"].to_pylist(), table["split"].to_pylist(), strict=True):
            splits[picture].add(split)
        sets_of.update(set(table["subject"].to_pylist()))
    built, subjects = IconsBuilt(), set()
    for icon_set in sets:
        table = parquet.read_table(unfinished / f"{icon_set.prefix}.parquet")
        left_out = Counter(json.loads(table.schema.metadata[b"left_out"]))
        kept = [sets_of[subject] >= least_sets for subject in table["subject"].to_pylist()]
        if not all(kept):
            left_out[f"of subjects in fewer than {least_sets} sets"] = len(kept) - sum(kept)
            table = table.filter(pyarrow.array(kept, pyarrow.bool_()))
        own = [most_held_out(splits[picture]) for picture in table["picture"].to_pylist()]
        place = table.schema.get_field_index("split")
        table = table.set_column(place, table.schema.field("split"), pyarrow.array(own, pyarrow.string()))
        built.left_out.update(left_out)
        built.icons.update((split, icon_set.prefix) for split in own)
        built.licences[icon_set.licence] += len(own)
        subjects.update(table["subject"].to_pylist())
        if len(own):
            _write_table(
                table.replace_schema_metadata(_schema().metadata), out / f"{icon_set.prefix}.parquet"
            )
    built.subjects = len(subjects)
    return built


def _tables(folder: Path, sets: Sequence[IconSet], columns: list[str]) -> Iterator[Any]:
    from pyarrow import parquet

    for icon_set in sets:
        yield parquet.read_table(folder / f"{icon_set.prefix}.parquet", columns=columns)


# ------------------------------------------------------------------ credits


def attribution(sets: Sequence[IconSet], built: IconsBuilt) -> str:
    """ATTRIBUTION.md: every set with its author and licence, as the licences ask."""
    of_set: Counter[str] = Counter()
    for (_, prefix), count in built.icons.items():
        of_set[prefix] += count
    lines = [
        "# Icons in this data set",
        "",
        f"Drawn from the SVG files of {PACKAGE}. If you publish pictures of these icons, or of a model that",
        "was trained on them, name the authors and licences below.",
        "",
        "| Set | Author | Licence | Icons |",
        "|---|---|---|---|",
    ]
    for each in sets:
        if of_set[each.prefix]:
            author = f"[{each.author}]({each.author_url})" if each.author_url else each.author
            licence = f"[{each.licence}]({each.licence_url})" if each.licence_url else each.licence
            lines.append(
                f"| {each.name} (`{each.prefix}`) | {author} | {licence} | {of_set[each.prefix]:,} |"
            )
    return "\n".join(lines) + "\n"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counter.most_common())


def _write_text(file: Path, text: str) -> None:
    with atomic_write(file) as opened:
        opened.write(text.encode())
