"""Score trained models on the shipped emoji, beside what real images score.

    python benchmarks/quality.py runs/quickstart
    python benchmarks/quality.py runs/a runs/b --out quality.json

Prints a Markdown table, and writes the same as JSON with the command, commit and machine. Every model draws
one picture for each of 1,000 captions: 600 of train, 300 of test and 100 of composition, the three styles
alike, one skin tone (the plain one) a subject and style. All images are seen at the models' resolution, real
ones brought there by their area, and then by EfficientNet-Lite0 at 224 px. A model that has learnt from that
network's features must be scored on others, as with --extractor efficientnet_lite1; it is refused otherwise.

FD and KD are the Fréchet and kernel distance to the real images of these three splits that are not among the
1,000. Retrieval ranks the real image of the picture's subject among 99 others of its style: among those of
all 1,000 captions, and for the test subjects among those of the 300. In brackets: captions shuffled.

How far blurred images are depends on how one blurs: by half, bicubic interpolation gives an FD near 47, area
and bilinear 57, antialiased bilinear 81.

What real images score is kept in the package's cache, so that only the first call takes minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

import imagen_pl
from imagen_pl.callbacks.tracking import git_state
from imagen_pl.data.emoji import SHIPPED, STYLES
from imagen_pl.data.transforms import decode
from imagen_pl.errors import UserError
from imagen_pl.files import cache_dir, written_whole
from imagen_pl.inference import TextToImage
from imagen_pl.metrics.distances import frechet_distance, kernel_distance
from imagen_pl.metrics.extractors import EfficientNetLite0, EfficientNetLite1, Extractor
from imagen_pl.metrics.retrieval import Retrieval, retrieval_accuracy

Images = UInt8[Tensor, "n 3 h w"]
Features = Float[Tensor, "n f"]

COUNTS = {"train": 600, "test": 300, "composition": 100}
SIZE = 64
# Of a folder that another program wrote: a picture for each caption (benchmarks/baselines/pictures_of.py).
PICTURES = "pictures.npy"
EXTRACTORS: dict[str, type[Extractor]] = {e.name: e for e in (EfficientNetLite0, EfficientNetLite1)}
_BATCH = 16
_TOLD_EVERY_S = 0.2 if sys.stderr.isatty() else 15


@dataclass(frozen=True)
class Picture:
    """One real image; `place` is its row in the file."""

    caption: str
    subject: str
    style: str
    split: str
    place: int


@dataclass
class Ruler:
    """The captions asked for, and the features of all real images at one resolution.

    pictures: one skin tone a subject and style, of the three splits; rows of `features`.
    asked: rows of the 1,000 that are asked for. rest: the other rows.
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
class Score:
    """One row of the table. What a row has no sense for is None."""

    name: str
    images: int
    fd: float | None
    kd: float | None
    retrieval: Retrieval | None
    shuffled: Retrieval | None
    test_retrieval: Retrieval | None
    test_shuffled: Retrieval | None


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
    """Rows to ask for: of each split its number, the styles alike."""
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
    """To fewer pixels by their area."""
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
    shown = tqdm(parts, desc=f"features of {name}", delay=2, leave=False, mininterval=_TOLD_EVERY_S)
    return torch.cat([extractor(part) for part in shown])


def kept(key: str, make: Callable[[], Features]) -> Features:
    """From the cache, or made and put there."""
    code = hashlib.sha256(f"{key} {hash_of(SHIPPED)}".encode()).hexdigest()[:24]
    file = cache_dir() / "quality" / f"{code}.pt"
    try:
        found: Features = torch.load(file, weights_only=True)
        return found
    except Exception:  # not there, or damaged
        made = make()
    with written_whole(file) as opened:
        torch.save(made, opened)
    return made


def hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def make_ruler(extractor: Extractor, resolution: int, seed: int) -> Ruler:
    pictures, encoded = read_pictures()
    images = shrink(torch.stack([decode(data, SIZE) for data in encoded]), resolution)
    key = f"{extractor.name} real {resolution}"
    features = kept(key, lambda: extract(extractor, images, "real images"))
    return Ruler(resolution, seed, pictures, images, features, choose(pictures, seed))


# ------------------------------------------------------------------ scores


def score(ruler: Ruler, name: str, features: Features, distances: bool = True) -> Score:
    """Of features whose rows stand for `ruler.asked`."""
    rest = ruler.features[ruler.rest]
    test = [k for k, row in enumerate(ruler.asked) if ruler.pictures[row].split == "test"]
    everything = list(range(len(ruler.asked)))
    return Score(
        name=name,
        images=len(features),
        fd=frechet_distance(rest, features) if distances else None,
        kd=kernel_distance(rest, features) if distances else None,
        retrieval=retrieve(ruler, features, everything, shuffled=False),
        shuffled=retrieve(ruler, features, everything, shuffled=True),
        test_retrieval=retrieve(ruler, features, test, shuffled=False),
        test_shuffled=retrieve(ruler, features, test, shuffled=True),
    )


def retrieve(ruler: Ruler, features: Features, which: list[int], shuffled: bool) -> Retrieval:
    rows = [ruler.asked[k] for k in which]
    return retrieval_accuracy(
        features[which],
        ruler.features[rows],
        [ruler.pictures[row].subject for row in rows],
        [ruler.pictures[row].style for row in rows],
        seed=ruler.seed,
        shuffled=shuffled,
    )


def score_real(ruler: Ruler, extractor: Extractor) -> list[Score]:
    """What the real images score themselves: in another style, blurred, and noise in their place."""
    asked = ruler.images[ruler.asked]
    noise = torch.randint(
        0, 256, asked.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(ruler.seed)
    )
    spoilt = {
        "real, blurred by half": blur(asked, 2),
        "real, blurred by a quarter": blur(asked, 4),
        "uniform noise": noise,
    }
    rows = [score(ruler, "real images", ruler.features[ruler.asked])]
    rows.append(score_other_style(ruler, "noto", "twemoji"))
    for name, images in spoilt.items():
        key = f"{extractor.name} bicubic, {name} {ruler.resolution} {ruler.seed}"
        rows.append(score(ruler, name, kept(key, partial(extract, extractor, images, name))))
    return rows


def score_other_style(ruler: Ruler, drawn: str, asked: str) -> Score:
    """The real image in one style stands for a model's answer in another."""
    place = {(p.subject, p.style): row for row, p in enumerate(ruler.pictures)}
    answers = {
        row: place[ruler.pictures[row].subject, drawn]
        for row in ruler.asked
        if ruler.pictures[row].style == asked and (ruler.pictures[row].subject, drawn) in place
    }
    part = Ruler(ruler.resolution, ruler.seed, ruler.pictures, ruler.images, ruler.features, list(answers))
    features = ruler.features[list(answers.values())]
    name = f"real, {drawn} for {asked}"
    everything = list(range(len(answers)))
    return Score(
        name, len(answers), None, None,
        retrieve(part, features, everything, shuffled=False),
        retrieve(part, features, everything, shuffled=True),
        None, None,
    )  # fmt: skip


def draw_pictures(model: TextToImage, ruler: Ruler, guidance: float = 1.0) -> Images:
    """A picture for each caption, each with a seed of its own."""
    pairs = [(ruler.pictures[row].caption, ruler.seed + k) for k, row in enumerate(ruler.asked)]
    drawn = [torch.from_numpy(np.array(picture)) for picture in model.draw(pairs, guidance=guidance)]
    return shrink(torch.stack(drawn).permute(0, 3, 1, 2), ruler.resolution)


def read_drawn(folder: Path, ruler: Ruler) -> Images:
    """The same of another program."""
    drawn = torch.from_numpy(np.load(folder / PICTURES)).permute(0, 3, 1, 2)
    if len(drawn) != len(ruler.asked) or ruler.seed != 0:
        raise UserError(
            f"{folder} holds {len(drawn)} pictures, for other captions than --seed {ruler.seed} asks"
        )
    return shrink(drawn, ruler.resolution)


# ------------------------------------------------------------------ what is told


def table(scores: list[Score]) -> str:
    head = "| | images | FD | KD | top-1 / top-5 / MRR (shuffled) | test subjects (shuffled) |"
    lines = [head, "|---|---|---|---|---|---|"]
    for s in scores:
        fd = "" if s.fd is None else f"{s.fd:.1f}"
        kd = "" if s.kd is None else f"{s.kd:.4f}"
        both = (pair(s.retrieval, s.shuffled), pair(s.test_retrieval, s.test_shuffled))
        lines.append(f"| {s.name} | {s.images} | {fd} | {kd} | {both[0]} | {both[1]} |")
    return "\n".join(lines)


def pair(found: Retrieval | None, shuffled: Retrieval | None) -> str:
    if found is None or shuffled is None:
        return ""
    told = (f"{r.top1:.1%} / {r.top5:.1%} / {r.mrr:.3f}" for r in (found, shuffled))
    return "{} ({})".format(*told)


def circumstances(ruler: Ruler, extractor: Extractor, models: list[Path]) -> dict[str, Any]:
    return {
        "command": shlex.join(sys.argv),
        "git": git_state(),
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.platform()},
        "torch": torch.__version__,
        "models": [str(path) for path in models],
        "data": SHIPPED.name,
        "extractor": extractor.name,
        "resolution": ruler.resolution,
        "seed": ruler.seed,
        "captions": COUNTS,
        "reals": len(ruler.rest),
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", type=Path, help="runs, checkpoints, releases or others' pictures"
    )
    parser.add_argument("--out", type=Path, default=Path("quality.json"), help="the JSON file to write")
    parser.add_argument("--seed", type=int, default=0, help="of captions, pictures and distractors")
    parser.add_argument("--resolution", type=int, help="px; at most 64; by default the first model's, or 32")
    parser.add_argument(
        "--extractor", choices=EXTRACTORS, default="efficientnet_lite0", help="whose features"
    )
    parser.add_argument(
        "--guidance", type=float, default=1.0, help="0 to 10; more than 1 heeds the words more"
    )
    options = parser.parse_args()
    try:
        settings = (options.seed, options.resolution, options.extractor, options.guidance)
        run(options.models, options.out, *settings)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


def check_teachers(path: Path, model: TextToImage, extractor: Extractor) -> None:
    """Raise UserError where a model has learnt from the features that it is to be scored on."""
    teachers = [str(name) for name in model.description.get("taught_by", [])]
    if extractor.name in teachers:
        others = " or ".join(name for name in EXTRACTORS if name not in teachers) or "of another network"
        raise UserError(
            f"{path} has learnt from {extractor.name}: what taught a model must not score it: "
            f"use --extractor {others}"
        )


def run(
    models: list[Path],
    out: Path,
    seed: int,
    resolution: int | None,
    extractor_name: str = "efficientnet_lite0",
    guidance: float = 1.0,
) -> None:
    start = time.monotonic()
    extractor = EXTRACTORS[extractor_name]()
    drawn = [path for path in models if (path / PICTURES).is_file()]
    loaded = [(path, imagen_pl.load(path, device="cpu")) for path in models if path not in drawn]
    for path, model in loaded:
        check_teachers(path, model, extractor)
    largest = min([SIZE, *(model.resolution for _, model in loaded)]) if loaded else 32
    resolution = largest if resolution is None else resolution
    if not 8 <= resolution <= largest and loaded:
        raise UserError(f"--resolution {resolution} is not between 8 and {largest}, what all models draw")
    ruler = make_ruler(extractor, resolution, seed)
    scores = []
    for path, model in loaded:
        features = extract(extractor, draw_pictures(model, ruler, guidance), str(path))
        scores.append(score(ruler, str(path), features))
    for path in drawn:
        scores.append(score(ruler, str(path), extract(extractor, read_drawn(path, ruler), str(path))))
    scores += score_real(ruler, extractor)
    about = circumstances(ruler, extractor, models)
    about["guidance"] = guidance
    about["seconds"] = round(time.monotonic() - start, 1)
    print(f"{extractor.name} features, {resolution} px, seed {seed}, {len(ruler.rest)} real images\n")
    print(table(scores))
    with written_whole(out) as file:
        file.write((json.dumps({**about, "scores": [asdict(s) for s in scores]}, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
