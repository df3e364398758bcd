"""Small real files for the tests of data."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row, Source
from imagen_pl.types import CaptionedBatch

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "grey", "pink", "brown")


class Solid(Source):
    """`count` images in memory, image i all of level i, caption "number i"."""

    def __init__(
        self, count: int, side: int = 16, captions: Callable[[int], Sequence[str]] | None = None
    ) -> None:
        self.path = "solid"
        self.count = count
        self.side = side
        self.captions = captions or (lambda i: [f"number {i}"])

    def load(self, problems: SkippedImages) -> dict[str, list[Row]]:
        return {"train": [Row(f"{i}.png", tuple(self.captions(i)), i) for i in range(self.count)]}

    def image(self, row: Row) -> bytes:
        return encoded(Image.new("RGB", (self.side, self.side), (row.place, row.place, row.place)))


class WithSplits(Solid):
    """Four rows in validation, two in test."""

    def load(self, problems: SkippedImages) -> dict[str, list[Row]]:
        rows = super().load(problems)["train"]
        return {"train": rows[6:], "validation": rows[:4], "test": rows[4:6]}


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
    """Pixels that do not compress: a file cut in half lacks image data."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def truncated_jpeg() -> bytes:
    whole = encoded(noise(64, 64), "JPEG", quality=95)
    return whole[: len(whole) // 2]


def write_images(folder: Path, names: Iterable[str], side: int = 32) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in names]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), COLOURS[i % len(COLOURS)]).save(path)
    return paths


def write_coco(folder: Path, side: int = 32) -> Path:
    """COCO's layout: eight training and four validation images, each with five captions."""
    for part, count in (("train2017", 8), ("val2017", 4)):
        names = [f"{i:06}.jpg" for i in range(count)]
        write_images(folder / part, names, side)
        images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
        captions = [{"image_id": i % count, "caption": f"a wall, view {i}"} for i in range(5 * count)]
        annotations = folder / f"annotations/captions_{part}.json"
        annotations.parent.mkdir(exist_ok=True)
        annotations.write_text(json.dumps({"images": images, "annotations": captions}))
    return folder


def write_photos(folder: Path, count: int = 10, side: int = 32) -> Path:
    """Pictures with a .txt beside each."""
    for i, path in enumerate(write_images(folder, [f"{i:03}.png" for i in range(count)], side)):
        path.with_suffix(".txt").write_text(f"a {COLOURS[i % len(COLOURS)]} square {i}\n")
    return folder


def write_metadata(folder: Path, rows: Iterable[dict[str, object]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "w:gz" if path.suffix == ".tgz" else "w"
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def module(source: Source, **settings: object) -> CaptionedImages:
    """A data module for small images, without workers."""
    defaults: dict[str, object] = {"resolution": 8, "batch_size": 4, "num_workers": 0, "epoch_kimg": 0.016}
    return CaptionedImages(source, **{**defaults, **settings})  # type: ignore[arg-type]


def validation_batches(data: CaptionedImages) -> DataLoader[CaptionedBatch]:
    """The loader of a data module that has a validation split."""
    loader = data.val_dataloader()
    assert not isinstance(loader, list)
    return loader
