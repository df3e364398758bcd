"""`imagen-pl evaluate`: every score of a trained model on a split, as JSON, Markdown and a sheet."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import imagen_pl
from imagen_pl.cli.options import add_drawing_options, add_model_argument, verb_parser
from imagen_pl.cli.sample import check_drawing_options, drawing_options
from imagen_pl.data.inspect import guess_source
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row, Source, StreamSource
from imagen_pl.data.splits import by_group, held_out, read_stream
from imagen_pl.data.transforms import UNREADABLE, decode
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid, strip, to_pil
from imagen_pl.inference.pipeline import TextToImage, load
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
from imagen_pl.metrics.report import report
from imagen_pl.models.pretrained.dual_encoders import TransformersDualEncoder
from imagen_pl.storage.atomic_files import atomic_write

Images = UInt8[Tensor, "n 3 r r"]

SHIPPED: dict[str, type[Extractor]] = {e.name: e for e in (EfficientNetLite0, EfficientNetLite1)}
_SEVERAL = (100, 4)  # prompts, and pictures each, that diversity is told by
_SHEET = 12
_BATCH = 32


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "evaluate",
        description="Score a model's pictures against real images, and write JSON, Markdown and a sheet.",
        notes=(
            "Of near-alike images (data.balance_groups) one each is taken. What is known of the real images "
            "is kept in the package's cache. Networks that taught the model are refused."
        ),
    )
    add_model_argument(parser)
    parser.add_argument(
        "--data", help="as `imagen-pl data inspect` takes it (default: what the model was trained on)"
    )
    parser.add_argument("--split", help="of the data (default: test where there is one, else validation)")
    parser.add_argument(
        "--val_fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="as data.val_fraction in training, where no split is held out (default: 0.05)",
    )
    parser.add_argument(
        "--num_images", type=int, default=1000, metavar="N", help="captions to draw (default: 1000)"
    )
    parser.add_argument(
        "--train_images",
        type=int,
        default=10_000,
        metavar="N",
        help="training images to look for copies among; 0 looks for none (default: 10000)",
    )
    parser.add_argument(
        "--extractors",
        nargs="+",
        metavar="NAME",
        help="efficientnet_lite0, efficientnet_lite1, inception_v3 (FID), or a network of transformers by "
        "its hub name or folder, as facebook/dinov2-small (default: one that ships and did not teach)",
    )
    parser.add_argument("--clip", metavar="NAME", help="CLIP or its like, by hub name or folder: CLIP score")
    parser.add_argument(
        "--fid_weights", metavar="FILE", help="Inception's weights, where there is no network"
    )
    parser.add_argument("--distractors", type=int, default=99, metavar="N", help="in retrieval (default: 99)")
    parser.add_argument(
        "--style_after",
        default=", ",
        metavar="TEXT",
        help='parts the style from a caption, as in "red heart, noto style" (default: ", ")',
    )
    parser.add_argument("--out", default="evaluation", metavar="DIR", help="folder (default: evaluation)")
    add_drawing_options(parser)
    return parser


@dataclass(frozen=True)
class RealSet:
    """What a model is held against.

    real: images of the split, one of each group of near-alike ones.
    captions: of each.
    asked: rows of these that pictures are drawn for.
    train: training images, where the split is not of them.
    """

    split: str
    real: Images
    captions: list[str]
    asked: list[int]
    train: Images | None


@dataclass(frozen=True)
class GeneratedSet:
    """pictures: one for each caption asked for. several: some more of the first prompts, prompt by prompt."""

    pictures: Images
    several: Images
    each: int


def run(words: Sequence[str]) -> int:
    """Parse the command line and do what it says."""
    return evaluate(make_parser().parse_args(words))


def evaluate(arguments: argparse.Namespace) -> int:
    """Do what the parsed command line says.

    Raises:
        UserError: the arguments do not go together, or the data or a network cannot be had.
    """
    _check(arguments)
    out = Path(arguments.out)
    model = load(arguments.model, arguments.device)
    extractors = _extractors(arguments, model)
    held = _held(arguments, model)
    drawn = _draw(model, held, arguments.seed, drawing_options(arguments))
    found = [_score(extractor, held, drawn, arguments) for extractor in extractors]
    about = _about(arguments, model, held)
    if arguments.clip is not None:
        about |= {"clip": arguments.clip, "clip_score": _clip_score(arguments.clip, held, drawn)}
    text = "\n".join(report(about, found))
    nearest = None if held.train is None else _nearest_in_train(extractors[0], held, drawn)
    with atomic_write(out / "evaluation.json") as file:
        result = {**about, "scores": [asdict(each) for each in found]}
        file.write((json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    with atomic_write(out / "evaluation.md") as file:
        file.write((text + "\n").encode())
    _sheet(held, drawn, nearest).save(out / "evaluation.png")
    print(text)
    print(f"\n{out}: evaluation.json, evaluation.md and evaluation.png")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.num_images < 2:
        raise UserError(f"--num_images {arguments.num_images} must be 2 or more, better 1,000")
    if arguments.train_images < 0:
        raise UserError(f"--train_images {arguments.train_images} must be 0 or more")
    check_drawing_options(arguments)
    if not 0 < arguments.val_fraction <= 0.5:
        raise UserError(f"--val_fraction {arguments.val_fraction} is not above 0 and at most 0.5")
    if Path(arguments.out).is_file():
        raise UserError(f"--out {arguments.out} is a file: name a folder")


# ---------------------------------------------------------------------- networks


def _extractors(arguments: argparse.Namespace, model: TextToImage) -> list[Extractor]:
    """Those that are asked for; else the first shipped one that has not taught the model."""
    teachers = [str(name) for name in model.description.get("teacher_networks", [])]
    free = [name for name in SHIPPED if name not in teachers]
    if not (arguments.extractors or free):
        raise UserError(f"{arguments.model} has learnt from {' and '.join(teachers)}: name --extractors")
    found = [_extractor(name, arguments.fid_weights) for name in arguments.extractors or free[:1]]
    if arguments.clip is not None:
        found.append(DualEncoderFeatures(TransformersDualEncoder(arguments.clip)))
    for extractor in found:
        teacher_networks = {extractor.name, extractor.fingerprint} & set(teachers)
        if teacher_networks:
            other = f": use --extractors {' '.join(free)}" if free else ""
            raise UserError(
                f"{arguments.model} has learnt from {teacher_networks.pop()}, and what taught a model must "
                "not "
                f"score it{other}"
            )
        extractor.load()
    return found


def _extractor(name: str, fid_weights: str | None) -> Extractor:
    if name in SHIPPED:
        return SHIPPED[name]()
    return InceptionV3(fid_weights) if name == InceptionV3.name else TransformersFeatures(name)


# ---------------------------------------------------------------------- data


def _held(arguments: argparse.Namespace, model: TextToImage) -> RealSet:
    source = _source(arguments, model)
    split, source, rows, train = _rows(source, arguments)
    rows, real = _decoded(source, [rows[group[0]] for group in by_group(rows)], model.resolution, split)
    count = min(arguments.num_images, len(rows))
    draw = np.random.default_rng(arguments.seed)
    asked = sorted(draw.choice(len(rows), count, replace=False).tolist())
    if len(train) > arguments.train_images:
        train = [train[i] for i in sorted(draw.choice(len(train), arguments.train_images, replace=False))]
    seen = _decoded(source, train, model.resolution, "training")[1] if train else None
    return RealSet(split, real, [row.captions[0] for row in rows], asked, seen)


def _source(arguments: argparse.Namespace, model: TextToImage) -> Source | StreamSource:
    if arguments.data is not None:
        return guess_source(arguments.data)
    described = model.description.get("data")
    if described is None:
        raise UserError(f"{arguments.model} does not say what it was trained on: name the data with --data")
    from jsonargparse import ArgumentError, ArgumentParser

    from imagen_pl.training.class_paths import import_all_parts

    import_all_parts()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments((Source, StreamSource), "data")
    try:
        found: Source | StreamSource = parser.instantiate_classes(
            parser.parse_object({"data": described})
        ).data
    except (ArgumentError, KeyError) as error:
        raise UserError(
            f"{arguments.model}: its data cannot be had ({error}): name them with --data"
        ) from error
    return found


def _rows(
    source: Source | StreamSource, arguments: argparse.Namespace
) -> tuple[str, Source, list[Row], list[Row]]:
    """The split's name, what opens its rows, these, and the training rows it is held out from."""
    if isinstance(source, StreamSource):
        split = arguments.split or "validation"
        read = read_stream(source, split, arguments.val_fraction, 10 * arguments.num_images)
        return split, read.source, read.validation, []
    splits = source.load(SkippedImages())
    split = arguments.split or next((name for name in ("test", "validation") if name in splits), "validation")
    if split in splits:
        rows, train = splits[split], splits.get("train", [])
    else:
        checked = held_out(source, split, arguments.val_fraction)
        rows, train = checked.validation, checked.train
    return split, source, [row for row in rows if row.captions], [] if split == "train" else train


def _decoded(source: Source, rows: Sequence[Row], resolution: int, what: str) -> tuple[list[Row], Images]:
    """Rows whose images can be read, and these."""
    good, images = [], []
    for row in _watched(rows, f"{what} images"):
        try:
            images.append(decode(source.image(row), resolution))
        except UNREADABLE:
            continue
        good.append(row)
    if not good:
        raise UserError(f"{source.path}: the split {what} holds no image that can be read and has a caption")
    return good, torch.stack(images)


# ---------------------------------------------------------------------- pictures and their features


def _draw(model: TextToImage, held: RealSet, seed: int, how: dict[str, Any]) -> GeneratedSet:
    """A picture for each caption, each with a seed of its own, and some more of the first prompts."""
    prompts = [held.captions[row] for row in held.asked]
    pairs = [(prompt, seed + k) for k, prompt in enumerate(prompts)]
    count, each = min(_SEVERAL[0], len(prompts)), _SEVERAL[1]
    more = [(prompt, seed + k) for prompt in prompts[:count] for k in range(each)]
    drawn = model.draw([*pairs, *more], **how)
    total = len(pairs) + len(more)
    images = torch.stack([_pixels(picture) for picture in _watched(drawn, "pictures", total)])
    return GeneratedSet(images[: len(pairs)], images[len(pairs) :], each)


def _pixels(picture: Image.Image) -> UInt8[Tensor, "3 r r"]:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _features(extractor: Extractor, images: Images, what: str) -> Float[Tensor, "n f"]:
    parts = images.split(_BATCH)
    return torch.cat([extractor(part) for part in _watched(parts, f"{extractor.name} features of {what}")])


def _kept_features(extractor: Extractor, images: Images, what: str) -> Float[Tensor, "n f"]:
    """The same of real images, which stay as they are from one model to the next."""
    held: dict[str, Tensor] = {}
    kept, key = RealStatistics(extractor, "evaluate"), hashlib.sha256(images.numpy().tobytes()).hexdigest()
    if not kept.read(key, held.update) or len(held.get("features", ())) != len(images):
        held = {"features": _features(extractor, images, what)}
        kept.write(key, held)
    return held["features"]


def _score(
    extractor: Extractor, held: RealSet, drawn: GeneratedSet, arguments: argparse.Namespace
) -> Evaluation:
    real = _kept_features(extractor, held.real, f"{held.split} images")
    several = _features(extractor, drawn.several, "more pictures")
    parted = [subject_and_style(held.captions[row], arguments.style_after) for row in held.asked]
    return evaluate_features(
        extractor,
        pictures=_features(extractor, drawn.pictures, "pictures"),
        paired=real[held.asked],
        real=real,
        subjects=[subject for subject, _ in parted],
        styles=[style for _, style in parted],
        several=several.unflatten(0, (-1, drawn.each)),
        train=None if held.train is None else _kept_features(extractor, held.train, "training images"),
        distractors=arguments.distractors,
        seed=arguments.seed,
    )


def _clip_score(name: str, held: RealSet, drawn: GeneratedSet) -> float:
    metric = ClipScore(TransformersDualEncoder(name))
    parts = drawn.pictures.split(_BATCH)
    captions = [held.captions[row] for row in held.asked]
    for k, part in enumerate(_watched(parts, "CLIP score")):
        metric.update(part, captions[_BATCH * k :][: len(part)], real=False)
    return next(iter(metric.compute("").values()))


def _nearest_in_train(extractor: Extractor, held: RealSet, drawn: GeneratedSet) -> list[int]:
    assert held.train is not None
    pictures = _features(extractor, drawn.pictures[_shown(drawn)], "the sheet").double()
    train = _kept_features(extractor, held.train, "training images").double()
    return torch.cdist(pictures, train).argmin(1).tolist()


def _watched(parts: Any, what: str, total: int | None = None) -> Iterator[Any]:
    """The same, with a progress bar once it takes more than two seconds."""
    yield from tqdm(parts, desc=what, total=total, delay=2, leave=False)


# ---------------------------------------------------------------------- what is told


def _about(arguments: argparse.Namespace, model: TextToImage, held: RealSet) -> dict[str, Any]:
    return {
        "imagen_pl": imagen_pl.__version__,
        "model": str(arguments.model),
        "images_seen": model.description.get("images_seen"),
        "resolution": model.resolution,
        "data": arguments.data or model.description.get("data"),
        "split": held.split,
        "pictures": len(held.asked),
        "real_images": len(held.real),
        "training_images": 0 if held.train is None else len(held.train),
        "seed": arguments.seed,
        **drawing_options(arguments),
    }


def _shown(drawn: GeneratedSet) -> list[int]:
    """Pictures of the sheet, spread over all."""
    return np.linspace(0, len(drawn.pictures) - 1, min(_SHEET, len(drawn.pictures)), dtype=int).tolist()


def _sheet(held: RealSet, drawn: GeneratedSet, nearest: list[int] | None) -> Image.Image:
    """For some captions: the picture, the real image, and the training image nearest to the picture."""
    rows = []
    for place, k in enumerate(_shown(drawn)):
        images = [drawn.pictures[k], held.real[held.asked[k]]]
        if nearest is not None and held.train is not None:
            images.append(held.train[nearest[place]])
        rows.append(strip(to_pil(torch.stack(images))))
    labels = [held.captions[held.asked[k]] for k in _shown(drawn)]
    return labelled_grid(rows, labels, columns=3)
