"""The work of `imagen-pl evaluate`: draw, compute features, score, and write the report."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

import imagen_pl
from imagen_pl.cli.drawing import draw_with_progress
from imagen_pl.cli.evaluation_data import Images, RealSet, read_real_set
from imagen_pl.cli.open_model import check_draws
from imagen_pl.data.progress import with_progress
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid, strip, to_pil
from imagen_pl.imaging.transparency import picture_on_white
from imagen_pl.inference.pipeline import TextToImage, load
from imagen_pl.inference.sampling_options import SamplingOptions
from imagen_pl.metrics.clip_score import ClipScore
from imagen_pl.metrics.evaluation import Evaluation, evaluate_features
from imagen_pl.metrics.extractors import (
    DualEncoderFeatures,
    EfficientNetLite0,
    EfficientNetLite1,
    Extractor,
    InceptionV3,
    TransformersFeatures,
)
from imagen_pl.metrics.feature_cache import RealStatistics
from imagen_pl.metrics.feature_scores import subject_and_style
from imagen_pl.metrics.report import evaluation_report
from imagen_pl.models.pretrained.dual_encoders import TransformersDualEncoder
from imagen_pl.storage.atomic_files import atomic_write

SHIPPED: dict[str, type[Extractor]] = {e.name: e for e in (EfficientNetLite0, EfficientNetLite1)}
_SEVERAL = (100, 4)  # diversity is measured on this many prompts, with this many images each
_SHEET = 12
_BATCH = 32
_LONG_WAIT_S = 20.0


@dataclass(frozen=True)
class GeneratedSet:
    """pictures: one for each sampled caption. several: `each` images for each of the first prompts."""

    pictures: Images
    several: Images
    each: int


def write_evaluation(arguments: argparse.Namespace, options: SamplingOptions) -> None:
    """Score the model and write evaluation.json, evaluation.md and evaluation.png.

    Raises:
        UserError: the model, the data or a network is not available.
    """
    out = Path(arguments.out)
    model = load(arguments.model, arguments.device, arguments.resolution)
    check_draws(model, arguments.model)
    extractors = _extractors(arguments, model)
    real_set = read_real_set(arguments, model)
    drawn = _draw(model, real_set, options)
    found = [_score(extractor, real_set, drawn, arguments) for extractor in extractors]
    about = _about(arguments, model, real_set, options)
    if arguments.clip is not None:
        about |= {"clip": arguments.clip, "clip_score": _clip_score(arguments.clip, real_set, drawn)}
    text = "\n".join(evaluation_report(about, found))
    nearest = None if real_set.train is None else _nearest_in_train(extractors[0], real_set, drawn)
    with atomic_write(out / "evaluation.json") as file:
        result = {**about, "scores": [asdict(each) for each in found]}
        file.write((json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    with atomic_write(out / "evaluation.md") as file:
        file.write((text + "\n").encode())
    _sheet(real_set, drawn, nearest).save(out / "evaluation.png")
    print(text)
    print(f"\n{out}: evaluation.json, evaluation.md and evaluation.png")


# ---------------------------------------------------------------------- networks


def _extractors(arguments: argparse.Namespace, model: TextToImage) -> list[Extractor]:
    """The networks named by --extractors; else the first included one that the model was not trained with."""
    teachers = [str(name) for name in model.description.get("teacher_networks", [])]
    free = [name for name in SHIPPED if name not in teachers]
    if not (arguments.extractors or free):
        raise UserError(
            f"{arguments.model} was trained with {' and '.join(teachers)}: name other --extractors"
        )
    found = [_extractor(name, arguments.fid_weights) for name in arguments.extractors or free[:1]]
    if arguments.clip is not None:
        found.append(DualEncoderFeatures(TransformersDualEncoder(arguments.clip)))
    for extractor in found:
        teacher_networks = {extractor.name, extractor.fingerprint} & set(teachers)
        if teacher_networks:
            other = f": use --extractors {' '.join(free)}" if free else ""
            raise UserError(
                f"{arguments.model} was trained with {teacher_networks.pop()}, and a network that trained a "
                f"model must not score it{other}"
            )
        extractor.load()
    return found


def _extractor(name: str, fid_weights: str | None) -> Extractor:
    if name in SHIPPED:
        return SHIPPED[name]()
    return InceptionV3(fid_weights) if name == InceptionV3.name else TransformersFeatures(name)


# ---------------------------------------------------------------------- pictures and their features


def _draw(model: TextToImage, real_set: RealSet, options: SamplingOptions) -> GeneratedSet:
    """One image for each caption, each with another seed, and several for each of the first prompts."""
    prompts = [real_set.captions[row] for row in real_set.sampled]
    pairs = [(prompt, options.seed + k) for k, prompt in enumerate(prompts)]
    count, each = min(_SEVERAL[0], len(prompts)), _SEVERAL[1]
    more = [(prompt, options.seed + k) for prompt in prompts[:count] for k in range(each)]
    drawn = draw_with_progress(model, [*pairs, *more], options)
    images = torch.stack([_pixels(picture) for picture in drawn])
    return GeneratedSet(images[: len(pairs)], images[len(pairs) :], each)


def _pixels(picture: Image.Image) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(picture_on_white(picture))).permute(2, 0, 1)


def _features(extractor: Extractor, images: Images, what: str) -> Float[Tensor, "n f"]:
    """Features, batch by batch; after the first batch, a long remaining time is printed."""
    parts, found = images.split(_BATCH), []
    start = time.monotonic()
    for part in with_progress(parts, f"{extractor.name} features of {what}", len(images), size=len):
        found.append(extractor(part))
        if len(found) == 1:
            _print_estimate((time.monotonic() - start) * (len(parts) - 1), extractor, len(images), what)
    return torch.cat(found)


def _print_estimate(seconds: float, extractor: Extractor, images: int, what: str) -> None:
    if seconds > _LONG_WAIT_S:
        wait = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
        print(f"{extractor.name} features of {images:,} {what}: about {wait}", file=sys.stderr)


def _kept_features(extractor: Extractor, images: Images, what: str) -> Float[Tensor, "n f"]:
    """Features of real images, cached on disk, since they are the same for every model."""
    stored: dict[str, Tensor] = {}
    kept, key = RealStatistics(extractor, "evaluate"), hashlib.sha256(images.numpy().tobytes()).hexdigest()
    if not kept.read(key, stored.update) or len(stored.get("features", ())) != len(images):
        stored = {"features": _features(extractor, images, what)}
        kept.write(key, stored)
    return stored["features"]


def _score(
    extractor: Extractor, real_set: RealSet, drawn: GeneratedSet, arguments: argparse.Namespace
) -> Evaluation:
    real = _kept_features(extractor, real_set.real, f"{real_set.split} images")
    several = _features(extractor, drawn.several, "more pictures")
    parted = [subject_and_style(real_set.captions[row], arguments.style_after) for row in real_set.sampled]
    return evaluate_features(
        extractor,
        pictures=_features(extractor, drawn.pictures, "pictures"),
        paired=real[real_set.sampled],
        real=real,
        subjects=[subject for subject, _ in parted],
        styles=[style for _, style in parted],
        several=several.unflatten(0, (-1, drawn.each)),
        train=None
        if real_set.train is None
        else _kept_features(extractor, real_set.train, "training images"),
        distractors=arguments.distractors,
        seed=arguments.seed,
        no_train=real_set.why_no_train,
    )


def _clip_score(name: str, real_set: RealSet, drawn: GeneratedSet) -> float:
    metric = ClipScore(TransformersDualEncoder(name))
    parts = drawn.pictures.split(_BATCH)
    captions = [real_set.captions[row] for row in real_set.sampled]
    for k, part in enumerate(with_progress(parts, "CLIP score", unit=" batches")):
        metric.update(part, captions[_BATCH * k :][: len(part)], real=False)
    return next(iter(metric.compute("").values()))


def _nearest_in_train(extractor: Extractor, real_set: RealSet, drawn: GeneratedSet) -> list[int]:
    assert real_set.train is not None
    pictures = _features(extractor, drawn.pictures[_shown(drawn)], "the sheet").double()
    train = _kept_features(extractor, real_set.train, "training images").double()
    return torch.cdist(pictures, train).argmin(1).tolist()


# ---------------------------------------------------------------------- the report


def _about(
    arguments: argparse.Namespace, model: TextToImage, real_set: RealSet, options: SamplingOptions
) -> dict[str, Any]:
    return {
        "imagen_pl": imagen_pl.__version__,
        "model": str(arguments.model),
        "images_seen": model.description.get("images_seen"),
        "resolution": model.resolution,
        "data": arguments.data or model.description.get("data"),
        "split": real_set.split,
        "pictures": len(real_set.sampled),
        "real_images": len(real_set.real),
        "training_images": 0 if real_set.train is None else len(real_set.train),
        "seed": arguments.seed,
        **options.drawing(),
        "refine": model.refine_steps(options.refine),
    }


def _shown(drawn: GeneratedSet) -> list[int]:
    """Indices of the sheet's images, spread evenly over all."""
    return np.linspace(0, len(drawn.pictures) - 1, min(_SHEET, len(drawn.pictures)), dtype=int).tolist()


def _sheet(real_set: RealSet, drawn: GeneratedSet, nearest: list[int] | None) -> Image.Image:
    """For some captions: generated image, real image, and the training image nearest to the generated one."""
    rows = []
    for place, k in enumerate(_shown(drawn)):
        images = [drawn.pictures[k], real_set.real[real_set.sampled[k]]]
        if nearest is not None and real_set.train is not None:
            images.append(real_set.train[nearest[place]])
        rows.append(strip(to_pil(torch.stack(images))))
    labels = [real_set.captions[real_set.sampled[k]] for k in _shown(drawn)]
    return labelled_grid(rows, labels, columns=3)
