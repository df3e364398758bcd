"""The real images that `imagen-pl evaluate` compares a model's images with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from imagen_pl.data.inspect import guess_source
from imagen_pl.data.progress import with_progress
from imagen_pl.data.sample_processing import SampleProcessing
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row, Source, StreamSource
from imagen_pl.data.splits import by_group, held_out, read_stream
from imagen_pl.data.transforms import UNREADABLE
from imagen_pl.errors import UserError
from imagen_pl.inference.networks import build
from imagen_pl.inference.pipeline import TextToImage

Images = UInt8[Tensor, "n 3 h w"]

# Computing features of training images takes most of the time; using more of them changes scores little.
_LEAST_TRAIN, _TRAIN_PER_PICTURE = 1000, 5
# CaptionedImages' default, for models that do not say what they were trained with.
_VAL_FRACTION = 0.05


@dataclass(frozen=True)
class RealSet:
    """The real images that a model is compared with.

    real: images of the split, one of each group of near-duplicates.
    captions: of each of them.
    sampled: indices of the captions that images are generated for.
    train: training images, if the split is held out from them.
    why_no_train: why `train` is None.
    """

    split: str
    real: Images
    captions: list[str]
    sampled: list[int]
    train: Images | None
    why_no_train: str = ""


def read_real_set(arguments: argparse.Namespace, model: TextToImage) -> RealSet:
    """The images to compare a model with, held out and decoded as in its training.

    Raises:
        UserError: the data is not available, or has no images to compare with.
    """
    trained = model.description
    fraction = arguments.val_fraction
    if fraction is None:
        fraction = trained.get("val_fraction")
    # With alpha, images are scored as they look on white.
    processing = replace(model.processing, alpha=False)
    split, source, rows, train = _rows(
        _source(arguments, model), arguments, _VAL_FRACTION if fraction is None else fraction
    )
    first = [rows[group[0]] for group in by_group(rows)]
    rows, real = _decode(source, first, processing, model.resolution, split)
    count = min(arguments.num_images, len(rows))
    draw = np.random.default_rng(arguments.seed)
    sampled = sorted(draw.choice(len(rows), count, replace=False).tolist())
    train_images = arguments.train_images
    if train_images is None:
        train_images = max(_LEAST_TRAIN, _TRAIN_PER_PICTURE * count)
    if len(train) > train_images:
        train = [train[i] for i in sorted(draw.choice(len(train), train_images, replace=False))]
    seen = _decode(source, train, processing, model.resolution, "training")[1] if train else None
    why = ""
    if seen is None:
        why = (
            "--train_images 0"
            if train_images == 0
            else f"the split {split} is not held out from training images"
        )
    return RealSet(split, real, [row.captions[0] for row in rows], sampled, seen, why)


def _source(arguments: argparse.Namespace, model: TextToImage) -> Source | StreamSource:
    if arguments.data is not None:
        return guess_source(arguments.data)
    described = model.description.get("data")
    if described is None:
        raise UserError(f"{arguments.model} does not say what it was trained on: name the data with --data")
    try:
        source: Source | StreamSource = build((Source, StreamSource), described, arguments.model, "data")
    except UserError as error:
        raise UserError(f"{error}: name the data with --data") from error
    return source


def _rows(
    source: Source | StreamSource, arguments: argparse.Namespace, val_fraction: float
) -> tuple[str, Source, list[Row], list[Row]]:
    """The split's name, the source of its images, its rows, and the training rows."""
    if isinstance(source, StreamSource):
        split = arguments.split or "validation"
        if val_fraction == 0 and split not in source.shards():
            raise _nothing_held_out(source)
        read = read_stream(source, split, val_fraction, 10 * arguments.num_images)
        return split, read.source, read.validation, []
    splits = source.load(SkippedImages())
    split = arguments.split or next((name for name in ("test", "validation") if name in splits), "validation")
    if split in splits:
        rows, train = splits[split], splits.get("train", [])
    elif val_fraction == 0:
        raise _nothing_held_out(source)
    else:
        checked = held_out(source, split, val_fraction)
        rows, train = checked.validation, checked.train
    return split, source, [row for row in rows if row.captions], [] if split == "train" else train


def _nothing_held_out(source: Source | StreamSource) -> UserError:
    return UserError(
        f"the model was trained on all images of {source.path} (data.val_fraction 0), so none are held out: "
        "name other images with --data and --val_fraction, or score the training images with --split train"
    )


def _decode(
    source: Source, rows: Sequence[Row], processing: SampleProcessing, resolution: int, what: str
) -> tuple[list[Row], Images]:
    """The rows with readable images, and these images."""
    good, images = [], []
    for row in with_progress(rows, f"reading {what} images"):
        try:
            images.append(processing.decode(source.image(row), resolution))
        except UNREADABLE:
            continue
        good.append(row)
    if not good:
        raise UserError(f"{source.path}: the split {what} holds no image that can be read and has a caption")
    return good, torch.stack(images)
