"""The protocol of benchmarks/quality.py: which captions are drawn, and how a set of pictures is scored.

Axes: n images, h w pixels, f features.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from imagen_pl.data.build_emoji import SHIPPED, STYLES
from imagen_pl.data.transforms import decode
from imagen_pl.metrics.distances import frechet_distance, kernel_distance
from imagen_pl.metrics.extractors import Extractor
from imagen_pl.metrics.retrieval import Retrieval, retrieval_accuracy
from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.storage.atomic_files import atomic_write, cache_dir

Images = UInt8[Tensor, "n 3 h w"]
Features = Float[Tensor, "n f"]

COUNTS = {"train": 600, "test": 300, "composition": 100}
SIZE = 64
_BATCH = 16
_REFRESH_S = 0.2 if sys.stderr.isatty() else 15


@dataclass(frozen=True)
class Picture:
    """One real image; `place` is its row in the file."""

    caption: str
    subject: str
    style: str
    split: str
    place: int


@dataclass
class ReferenceSet:
    """The captions to draw, and the features of all real images at one resolution.

    pictures: one skin tone a subject and style, of the three splits; rows of `features`.
    asked: rows of the 1,000 captions to draw. rest: the other rows.
    """

    resolution: int
    seed: int
    pictures: list[Picture]
    images: Images
    features: Features
    asked: list[int]
    rest: list[int] = field(init=False)

    def __post_init__(self) -> None:
        taken = set(self.asked)
        self.rest = [i for i in range(len(self.pictures)) if i not in taken]


@dataclass(frozen=True)
class TrainingCost:
    """What training a model cost, as far as it is known."""

    images_seen: int | None = None
    images_per_second: float | None = None
    generator_parameters: int | None = None
    discriminator_parameters: int | None = None
    peak_memory_gb: float | None = None


@dataclass(frozen=True)
class Score:
    """One row of the table; None where a score does not apply."""

    name: str
    images: int
    fd: float | None
    kd: float | None
    retrieval: Retrieval | None
    shuffled: Retrieval | None
    test_retrieval: Retrieval | None
    test_shuffled: Retrieval | None
    took: TrainingCost | None = None


# ------------------------------------------------------------------ what is asked for


def read_pictures() -> tuple[list[Picture], list[bytes]]:
    """The plain one, which comes first, of each subject and style of the three splits."""
    from pyarrow import parquet

    table = parquet.read_table(SHIPPED)
    first: dict[tuple[str, str], Picture] = {}
    for place, row in enumerate(table.drop_columns(["image"]).to_pylist()):
        words = {name: row[name] for name in ("caption", "subject", "style", "split")}
        if row["split"] in COUNTS:
            first.setdefault((row["subject"], row["style"]), Picture(**words, place=place))
    pictures = list(first.values())
    encoded = [table["image"][p.place]["bytes"].as_py() for p in pictures]
    return pictures, encoded


def choose(pictures: list[Picture], seed: int) -> list[int]:
    """Rows of the captions to draw: a fixed number of each split, the styles equally."""
    draw = np.random.default_rng(seed)
    rows: list[int] = []
    for split, count in COUNTS.items():
        for k, style in enumerate(STYLES):
            share = count // len(STYLES) + (k < count % len(STYLES))
            held = [i for i, p in enumerate(pictures) if (p.split, p.style) == (split, style)]
            rows += sorted(draw.choice(held, share, replace=False).tolist())
    return rows


# ------------------------------------------------------------------ images and their features


def shrink(images: Images, resolution: int) -> Images:
    """Resize to fewer pixels by area averaging."""
    if images.shape[-1] == resolution:
        return images
    return F.interpolate(images.float(), (resolution, resolution), mode="area").round().to(torch.uint8)


def blur(images: Images, factor: int) -> Images:
    """To fewer pixels and back, by bicubic interpolation."""
    side = images.shape[-1]
    few = F.interpolate(images.float(), (side // factor, side // factor), mode="bicubic", antialias=True)
    back = F.interpolate(few, (side, side), mode="bicubic")
    return back.round().clamp(0, 255).to(torch.uint8)


def extract(extractor: Extractor, images: Images, name: str) -> Features:
    parts = images.split(_BATCH)
    shown = tqdm(parts, desc=f"features of {name}", delay=2, leave=False, mininterval=_REFRESH_S)
    return torch.cat([extractor(part) for part in shown])


def cached(key: str, make: Callable[[], Features]) -> Features:
    """From the cache, or made and put there."""
    code = hashlib.sha256(f"{key} {hash_of(SHIPPED)}".encode()).hexdigest()[:24]
    file = cache_dir() / "quality" / f"{code}.pt"
    try:
        found: Features = torch.load(file, weights_only=True)
        return found
    except Exception:  # not there, or damaged
        made = make()
    with atomic_write(file) as opened:
        torch.save(made, opened)
    return made


def hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def make_reference(extractor: Extractor, resolution: int, seed: int) -> ReferenceSet:
    pictures, encoded = read_pictures()
    images = shrink(torch.stack([decode(data, SIZE) for data in encoded]), resolution)
    key = f"{extractor.name} real {resolution}"
    features = cached(key, lambda: extract(extractor, images, "real images"))
    return ReferenceSet(resolution, seed, pictures, images, features, choose(pictures, seed))


# ------------------------------------------------------------------ scores


def score(reference: ReferenceSet, name: str, features: Features, distances: bool = True) -> Score:
    """Score features whose rows belong to `reference.asked`."""
    rest = reference.features[reference.rest]
    test = [k for k, row in enumerate(reference.asked) if reference.pictures[row].split == "test"]
    everything = list(range(len(reference.asked)))
    return Score(
        name=name,
        images=len(features),
        fd=frechet_distance(rest, features) if distances else None,
        kd=kernel_distance(rest, features) if distances else None,
        retrieval=retrieve(reference, features, everything, shuffled=False),
        shuffled=retrieve(reference, features, everything, shuffled=True),
        test_retrieval=retrieve(reference, features, test, shuffled=False),
        test_shuffled=retrieve(reference, features, test, shuffled=True),
    )


def retrieve(reference: ReferenceSet, features: Features, which: list[int], shuffled: bool) -> Retrieval:
    rows = [reference.asked[k] for k in which]
    return retrieval_accuracy(
        features[which],
        reference.features[rows],
        [reference.pictures[row].subject for row in rows],
        [reference.pictures[row].style for row in rows],
        seed=reference.seed,
        shuffled=shuffled,
    )


def score_real(reference: ReferenceSet, extractor: Extractor) -> list[Score]:
    """Reference rows: real images, those of another style or caption, blurred ones, and noise."""
    asked = reference.images[reference.asked]
    noise = torch.randint(
        0, 256, asked.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(reference.seed)
    )
    spoilt = {
        "real, blurred by half": blur(asked, 2),
        "real, blurred by a quarter": blur(asked, 4),
        "uniform noise": noise,
    }
    rows = [score(reference, "real images", reference.features[reference.asked])]
    rows.append(score_other_style(reference, "noto", "twemoji"))
    rows.append(score_nearest_caption(reference))
    for name, images in spoilt.items():
        key = f"{extractor.name} bicubic, {name} {reference.resolution} {reference.seed}"
        rows.append(score(reference, name, cached(key, partial(extract, extractor, images, name))))
    return rows


def score_other_style(reference: ReferenceSet, drawn: str, asked: str) -> Score:
    """The real image in one style stands for a model's answer in another."""
    place = {(p.subject, p.style): row for row, p in enumerate(reference.pictures)}
    answers = {
        row: place[reference.pictures[row].subject, drawn]
        for row in reference.asked
        if reference.pictures[row].style == asked and (reference.pictures[row].subject, drawn) in place
    }
    part = ReferenceSet(
        reference.resolution,
        reference.seed,
        reference.pictures,
        reference.images,
        reference.features,
        list(answers),
    )
    features = reference.features[list(answers.values())]
    name = f"real, {drawn} for {asked}"
    everything = list(range(len(answers)))
    return Score(
        name, len(answers), None, None,
        retrieve(part, features, everything, shuffled=False),
        retrieve(part, features, everything, shuffled=True),
        None, None,
    )  # fmt: skip


def score_nearest_caption(reference: ReferenceSet) -> Score:
    """For a test caption, the real training image of its style whose caption is the nearest to it.

    What a model can know of a subject that it never saw, it knows by what captions are near; one that drew
    its training images perfectly, and nothing new, would score this.
    """
    test = [row for row in reference.asked if reference.pictures[row].split == "test"]
    nearest = nearest_captions(reference.pictures, test)
    part, features, everything = (
        replace(reference, asked=test),
        reference.features[nearest],
        list(range(len(test))),
    )
    return Score(
        "real, of the nearest training caption", len(test), None, None, None, None,
        retrieve(part, features, everything, shuffled=False),
        retrieve(part, features, everything, shuffled=True),
    )  # fmt: skip


def nearest_captions(pictures: list[Picture], rows: list[int]) -> list[int]:
    """For each of these rows, the row of the training picture of the same style with the nearest caption."""
    vectors = F.normalize(encode([picture.caption for picture in pictures]), dim=1)
    known = {
        str(style): [i for i, p in enumerate(pictures) if (p.split, p.style) == ("train", style)]
        for style in STYLES
    }
    nearest: list[int] = []
    for row in rows:
        among = known[pictures[row].style]
        nearest.append(among[int((vectors[among] @ vectors[row]).argmax())])
    return nearest


def encode(captions: list[str]) -> Features:
    """Their vectors by the text encoder that is installed with the package, or from the cache."""
    encoder = FrozenTextEncoder()

    def read() -> Features:
        parts = [captions[i : i + 64] for i in range(0, len(captions), 64)]
        with torch.no_grad():
            return torch.cat([encoder.encode(part).pooled for part in parts])

    return cached("\n".join([encoder.fingerprint, *captions]), read)
