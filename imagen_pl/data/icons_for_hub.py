"""Prepares icons built by `imagen-pl data icons` for the Hugging Face hub: Parquet files and a card."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from imagen_pl.data.progress import progress_bar
from imagen_pl.errors import UserError

SUMMARY, CREDITS = "icons.json", "ATTRIBUTION.md"
SPLITS = ("train", "validation", "test", "composition")
_SHARD_MB = 400.0  # the hub's viewer reads files of up to about 500 MB
_CARD = """\
# {title}

{icons:,} open icons of {subjects:,} subjects in {sets} sets, drawn at {size} px from the SVG files of
{package}. One caption has many pictures, since many sets draw the same subject.

```python
from datasets import load_dataset

icons = load_dataset("{name}", split="train")
icons[0]["image"], icons[0]["captions"]
```

Train on it with imagen_pl:

```
imagen-pl fit --config configs/experiment/icons32.yaml --config configs/data/huggingface.yaml \\
  --data.source.path {name}
```

## Splits

| Split | Icons |
|---|---|
{splits}

Train, validation and test have no subjects in common. Composition combines subjects and sets of the training
split in pairs that the training split does not contain. The split is a function of the subject's name, or of
subject and set.

## Columns

| Column | Content |
|---|---|
| `image` | the picture, {size} x {size} px, on {background} |
| `captions` | several captions, from the subject alone to subject, set and kind |
| `name` | the icon's name in its set |
| `words`, `subject` | the subject, as words and as a key |
| `set`, `kind`, `coloured`, `category` | icon set, kind such as outline, whether coloured, category |
| `licence`, `author` | licence and author of the set |
| `picture` | equal for identical pictures |
| `split` | as above |

## Licences

Each icon has the licence of its set. If you publish pictures of these icons, or of a model that was trained
on them, name the authors and licences in [{credits}]({credits}).

| Licence | Icons |
|---|---|
{licences}
"""


@dataclass
class PreparedIcons:
    """What was written.

    Attributes:
        splits: icons by split.
        licences: icons by licence, as SPDX names.
        subjects: the subjects.
        sets: the sets' names.
    """

    splits: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    subjects: set[str] = field(default_factory=set)
    sets: set[str] = field(default_factory=set)

    def lines(self) -> list[str]:
        """The summary that the command prints."""
        found = ", ".join(f"{name} {self.splits[name]:,}" for name in self.splits)
        return [f"{self.splits.total():,} icons: {found}"]


def prepare_icons(source: Path, out: Path, name: str, shard_mb: float = _SHARD_MB) -> PreparedIcons:
    """Write a folder that the hub reads as a data set: Parquet files by split, a card, and the credits.

    Args:
        source: the folder that `imagen-pl data icons` wrote.
        out: a new folder, or an empty one.
        name: of the data set on the hub, "owner/name".
        shard_mb: largest size of a Parquet file, MB of uncompressed rows.

    Raises:
        UserError: `source` is not such a folder, or `out` is not empty.
    """
    summary = check_icons(source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: name a new one")
    (out / "data").mkdir(parents=True, exist_ok=True)
    done = _write_splits(source, out / "data", int(shard_mb * 1e6))
    shutil.copy(source / CREDITS, out / CREDITS)
    shutil.copy(source / SUMMARY, out / SUMMARY)
    (out / "README.md").write_text(card(name, summary, done), encoding="utf-8")
    return done


def check_icons(source: Path) -> dict[str, Any]:
    """The summary of built icons. Raises UserError if the folder is not a finished one of `data icons`."""
    if not ((source / SUMMARY).is_file() and (source / CREDITS).is_file() and any(source.glob("*.parquet"))):
        raise UserError(
            f"{source} is not a finished folder of `imagen-pl data icons`, which holds {SUMMARY}, {CREDITS} "
            "and Parquet files"
        )
    summary: dict[str, Any] = json.loads((source / SUMMARY).read_text(encoding="utf-8"))
    return summary


def _write_splits(source: Path, folder: Path, shard_bytes: int) -> PreparedIcons:
    """Write the rows of all sets, one set at a time, to the files of their splits."""
    from pyarrow import compute, parquet

    done, shards = PreparedIcons(), Counter[str]()
    writers: dict[str, Any] = {}
    written: Counter[str] = Counter()  # bytes in the split's last file
    files = sorted(source.glob("*.parquet"))
    try:
        with progress_bar("writing", len(files), " sets") as bar:
            for file in files:
                table = parquet.read_table(file)
                for split in SPLITS:
                    rows = table.filter(compute.equal(table["split"], split))
                    if not len(rows):
                        continue
                    if split in writers and written[split] + rows.nbytes > shard_bytes:
                        writers.pop(split).close()
                    if split not in writers:
                        place = folder / f"{split}-{shards[split]:05d}.parquet"
                        writers[split] = parquet.ParquetWriter(place, table.schema, compression="zstd")
                        shards[split] += 1
                        written[split] = 0
                    writers[split].write_table(rows, row_group_size=1024)
                    written[split] += rows.nbytes
                    done.splits[split] += len(rows)
                done.licences.update(table["licence"].to_pylist())
                done.subjects.update(table["subject"].to_pylist())
                done.sets.update(table["set"].to_pylist())
                bar.update(1)
    finally:
        for writer in writers.values():
            writer.close()
    # The hub's naming scheme for the files of a split.
    for split, number in shards.items():
        for k in range(number):
            (folder / f"{split}-{k:05d}.parquet").rename(folder / f"{split}-{k:05d}-of-{number:05d}.parquet")
    return done


def card(name: str, summary: dict[str, Any], done: PreparedIcons) -> str:
    """The data set card as Markdown, with the metadata that the hub reads.

    Args:
        name: of the data set on the hub.
        summary: content of icons.json.
        done: what was written.
    """
    title = name.rpartition("/")[2]
    head: dict[str, Any] = {"pretty_name": title}
    if len(done.licences) == 1:
        head["license"] = next(iter(done.licences)).lower()
    else:
        head |= {"license": "other", "license_name": "open-icon-licences", "license_link": CREDITS}
    head |= {
        "task_categories": ["text-to-image"],
        "language": ["en"],
        "tags": ["icons", "imagen_pl"],
        "size_categories": [_size_category(done.splits.total())],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"data/{split}-*.parquet"}
                    for split in SPLITS
                    if done.splits[split]
                ],
            }
        ],
    }
    body = _CARD.format(
        title=title,
        name=name,
        icons=done.splits.total(),
        subjects=len(done.subjects),
        sets=len(done.sets),
        size=summary["size"],
        package=summary["package"],
        background="white" if summary["background"] == "white" else "a transparent background",
        splits=_rows({split: done.splits[split] for split in SPLITS if done.splits[split]}),
        licences=_rows(dict(done.licences.most_common())),
        credits=CREDITS,
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{body}"


def _rows(counts: dict[str, int]) -> str:
    return "\n".join(f"| {name} | {count:,} |" for name, count in counts.items())


def _size_category(rows: int) -> str:
    """Size category in the hub's notation."""
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((text for bound, text in bounds if rows < bound), "1M<n<10M")
