"""Comparing drawn images, and what the tiny run was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from imagen_pl.data.sources.folder import FolderSource
from imagen_pl.data.splits import held_out


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def training_captions(folder: Path) -> list[str]:
    """Of the tiny run, whose folder of photos is split by name."""
    config = yaml.safe_load((folder / "tiny.yaml").read_text())["data"]
    source = FolderSource(config["source"]["init_args"]["path"])
    train = held_out(source, "validation", config["val_fraction"]).train
    return [caption for row in train for caption in row.captions]


def close(a: Image.Image, b: Image.Image) -> bool:
    """Batches of other sizes may take other kernels, which round the last bit otherwise."""
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max()) <= 1
