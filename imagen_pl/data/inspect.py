"""Inspects a data set before training: counts, sizes, captions, problems, and a contact sheet."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from imagen_pl.data.progress import with_progress
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row, Source, StreamSource, existing
from imagen_pl.data.sources.coco import CocoSource
from imagen_pl.data.sources.emoji import EmojiSource
from imagen_pl.data.sources.folder import FolderSource
from imagen_pl.data.sources.huggingface import HuggingFaceSource
from imagen_pl.data.sources.icons import IconSource
from imagen_pl.data.sources.parquet import ParquetSource
from imagen_pl.data.sources.webdataset import WebDatasetSource
from imagen_pl.data.splits import skip_reason, smallest_side
from imagen_pl.data.transforms import UNREADABLE, decode, quiet_pillow, read_size

_SHEET_IMAGES = 30
_SHEET_COLUMNS = 6
_SHEET_SIZE = 128
_LONG_CAPTION = 50
_NEAR = 0.13  # how far an image's ratio of width to height may be from the common one, relatively
_KEPT = 0.75  # share of an image; if the centre crop keeps less, the report counts it


@dataclass
class Report:
    """Counts and problems of a data set.

    source: the source that reads it, for `data.source` in YAML.
    splits: images by split.
    widths, heights: of every readable image, px.
    caption_words: number of words of every caption.
    captions_per_image: of every image with captions.
    distinct_captions: number of different captions.
    problems: images that training skips, by the rules of `fit`.
    smallest: training skips images with a shorter side, px.
    decoded: number of fully decoded images; only the headers of the others were read.
    truncated: whether only a part of a stream was read.
    sheet: the contact sheet.
    """

    source: Source | StreamSource
    splits: dict[str, int]
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    caption_words: list[int] = field(default_factory=list)
    captions_per_image: list[int] = field(default_factory=list)
    distinct_captions: int = 0
    problems: SkippedImages = field(default_factory=SkippedImages)
    smallest: int = 1
    decoded: int = 0
    truncated: bool = False
    sheet: Path | None = None

    def lines(self) -> Iterator[str]:
        """The report as text."""
        kind = type(self.source)
        yield f"{self.source.path}: read by {kind.__module__}.{kind.__name__}"
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        more = " (as far as it was read: --limit)" if self.truncated else ""
        yield f"images     {sum(self.splits.values()):,}: {splits}{more}"
        if self.widths:
            shapes = [(min(size), max(size)) for size in zip(self.widths, self.heights, strict=True)]
            square = sum(short == long for short, long in shapes) / len(shapes)
            yield (
                f"sizes      width {_spread(self.widths)}, height {_spread(self.heights)} px "
                f"(smallest, median, largest); {square:.0%} square"
            )
            half = statistics.median_low(short for short, _ in shapes)
            yield f"           half have a shorter side of {half} px or more"
            cut = sum(short < _KEPT * long for short, long in shapes)
            if cut:
                note = "lose over a quarter to the centre crop: --data.fit pad keeps them whole"
                yield f"           {cut:,} {note}"
            ratio = common_shape(list(zip(self.widths, self.heights, strict=True)))
            if ratio != 1:
                yield (
                    f"           most are about {ratio:g} times as wide as high: --data.aspect_ratio "
                    f"{ratio:g} trains on that shape"
                )
        if self.caption_words:
            each = max(self.captions_per_image)
            yield (
                f"captions   {len(self.caption_words):,}, {self.distinct_captions:,} of them different"
                + (f"; up to {each} an image" if each > 1 else "")
            )
            yield f"           {_spread(self.caption_words)} words (smallest, median, largest)"
            long = sum(n > _LONG_CAPTION for n in self.caption_words)
            if long:
                yield f"           {long:,} have over {_LONG_CAPTION} words: text encoders may cut them off"
        if isinstance(self.source, Source):
            yield from self.source.summary()
        if "validation" not in self.splits:
            yield "splits     no validation: data.val_fraction of the training images will be held out"
        yield f"problems   {self.problems.summary() or 'none'}"
        if self.problems.total():
            yield (
                f"           `fit` skips these; at --resolution {2 * self.smallest} it skips images with a "
                f"side below {self.smallest} px (data.min_size)"
            )
        if self.decoded < len(self.widths):
            yield f"           {self.decoded:,} images were fully decoded; the others by their header"
        if self.sheet is not None:
            yield f"pictures   {self.sheet}"


def guess_source(path: str) -> Source | StreamSource:
    """The source for a path; "emoji" and "icons" are the included sets, "hf:NAME" a data set on the hub.

    Raises:
        UserError: the path does not exist.
    """
    if path == "emoji":
        return EmojiSource()
    if path == "icons":
        return IconSource()
    if path.startswith("hf:"):
        return HuggingFaceSource(path.removeprefix("hf:"))
    if path.endswith(".tar") or "{" in path or "://" in path or path.startswith("pipe:"):
        return WebDatasetSource(path)
    found = existing(path)
    if found.suffix == ".parquet":
        return ParquetSource(path)
    if found.suffix == ".json":
        return CocoSource(path)
    if not found.is_dir():
        return FolderSource(path)  # which says what is wrong
    if (found / "dataset_dict.json").is_file() or (found / "state.json").is_file():
        return HuggingFaceSource(path)
    if any(found.glob("captions_*.json")) or any(found.glob("annotations/captions_*.json")):
        return CocoSource(path)
    if (found / "icons.json").is_file():
        return IconSource(path)
    if any(found.rglob("*.parquet")):
        return ParquetSource(path)
    if any(found.rglob("*.tar")):
        return WebDatasetSource(path)
    return FolderSource(path)


def inspect_source(path: str, out: Path | None = None, limit: int = 2000, resolution: int = 64) -> Report:
    """Read a data set and report what it contains and what training would skip.

    Args:
        path: as for `guess_source`.
        out: PNG file for a contact sheet with captions; None writes none.
        limit: fully decode this many images, spread over the set; of a stream, read only this many.
        resolution: training resolution, px: `fit` skips images with a side below half of it.

    Raises:
        UserError: there are no images.
    """
    source = guess_source(path)
    problems = SkippedImages()
    truncated = False
    if isinstance(source, StreamSource):
        splits, opener, truncated = _read_stream(source, problems, limit)
    else:
        splits = source.load(problems)
        opener = source.image
    rows = [row for split in splits.values() for row in split]
    report = Report(
        source,
        {name: len(split) for name, split in splits.items()},
        problems=problems,
        smallest=smallest_side(resolution),
        truncated=truncated,
    )
    report.caption_words = [len(caption.split()) for row in rows for caption in row.captions]
    report.captions_per_image = [len(row.captions) for row in rows if row.captions]
    counts = Counter(caption for row in rows for caption in row.captions)
    report.distinct_captions = len(counts)
    pictures = _inspect_rows(rows, opener, report, limit)
    if out is not None and pictures:
        report.sheet = _write_sheet(pictures, out)
    return report


def _inspect_rows(
    rows: list[Row], opener: Callable[[Row], bytes | Path], report: Report, limit: int
) -> list[tuple[Tensor, str]]:
    """Read every header and decode some images; return the images for the contact sheet."""
    decode_every = max(1, len(rows) // limit)
    show_every = max(1, len(rows) // _SHEET_IMAGES)

    def inspect_row(i: int) -> tuple[int, int, Tensor | None, str | None] | str:
        try:
            image = opener(rows[i])
            width, height = read_size(image)
            whole = i % decode_every == 0 or i % show_every == 0
            picture = decode(image, _SHEET_SIZE, fit="pad") if whole else None
            return width, height, picture, skip_reason(rows[i], lambda: image, report.smallest)
        except FileNotFoundError:
            return "missing"
        except UNREADABLE:
            return "unreadable"

    pictures: list[tuple[Tensor, str]] = []
    with quiet_pillow(), ThreadPoolExecutor(4) as pool:
        seen = pool.map(inspect_row, range(len(rows)))
        for i, found in enumerate(with_progress(seen, "reading images", len(rows))):
            row = rows[i]
            if isinstance(found, str):
                report.problems.add(found, row.name)
                continue
            width, height, picture, reason = found
            report.widths.append(width)
            report.heights.append(height)
            report.decoded += picture is not None
            if reason is not None:
                report.problems.add(reason, row.name)
            if picture is not None and i % show_every == 0 and len(pictures) < _SHEET_IMAGES:
                pictures.append((picture, row.captions[0] if row.captions else f"({row.name})"))
    return pictures


def _read_stream(
    source: StreamSource, problems: SkippedImages, limit: int
) -> tuple[dict[str, list[Row]], Callable[[Row], bytes | Path], bool]:
    splits: dict[str, list[Row]] = {}
    truncated = False
    for split, shards in source.shards().items():
        stream = (
            Row(row.name, row.captions, data)
            for shard in shards
            for row, data in source.read(shard, problems)
        )
        splits[split] = list(islice(stream, limit))
        truncated |= next(stream, None) is not None
    return splits, lambda row: row.place, truncated


def _write_sheet(pictures: Sequence[tuple[Tensor, str]], out: Path) -> Path:
    from imagen_pl.imaging.grids import labelled_grid, to_pil

    images = to_pil(torch.stack([image for image, _ in pictures]))
    sheet = labelled_grid(images, [label for _, label in pictures], _SHEET_COLUMNS, _SHEET_SIZE)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, "PNG")
    return out


def common_shape(sizes: Sequence[tuple[int, int]]) -> float:
    """Width / height, a multiple of 1/4, that at least half of the images are near to; 1 where there is none.

    Networks that start at 4 px can have such a ratio.
    """
    ratios = [width / height for width, height in sizes]
    common = max(round(4 * statistics.median(ratios)), 1) / 4
    near = sum(abs(ratio / common - 1) < _NEAR for ratio in ratios)
    return common if 2 * near >= len(ratios) else 1.0


def _spread(values: Sequence[int]) -> str:
    return f"{min(values)}, {statistics.median_low(values)}, {max(values)}"
