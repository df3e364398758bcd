"""Score trained models on the shipped emoji, beside what real images score.

    python -m benchmarks.quality runs/quickstart
    python -m benchmarks.quality runs/a runs/b --out quality.json

Prints a Markdown table, and writes the same as JSON with the command, commit and machine, and beside it, as
PNG, what each model drew for the same sixteen captions. Every model draws
one picture for each of 1,000 captions: 600 of train, 300 of test and 100 of composition, the three styles
alike, one skin tone (the plain one) a subject and style. All images are seen at the models' resolution, real
ones brought there by their area, and then by EfficientNet-Lite0 at 224 px. A model that has learnt from that
network's features must be scored on others, as with --extractor efficientnet_lite1; it is refused otherwise.

FD and KD are the Fréchet and kernel distance to the real images of these three splits that are not among the
1,000. Retrieval ranks the real image of the picture's subject among 99 others of its style: among those of
all 1,000 captions, and for the test subjects among those of the 300. In brackets: captions shuffled.

"real, of the nearest training caption" answers a test caption with the real training image whose caption is
nearest: what a model would score that drew its training images perfectly, and knew no more.

How far blurred images are depends on how one blurs: by half, bicubic interpolation gives an FD near 47, area
and bilinear 57, antialiased bilinear 81.

What real images score is kept in the package's cache, so that only the first call takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import imagen_pl
from benchmarks.ablation import images_per_second, read_metrics
from benchmarks.machine import command_line, cpu_model
from benchmarks.protocol import (
    COUNTS,
    SIZE,
    Images,
    ReferenceSet,
    Score,
    TrainingCost,
    extract,
    make_reference,
    score,
    score_real,
    shrink,
)
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.data.build_emoji import SHIPPED
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import labelled_grid, to_pil
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.metrics.extractors import EfficientNetLite0, EfficientNetLite1, Extractor
from imagen_pl.metrics.retrieval import Retrieval
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.storage.checkpoint_io import read_checkpoint
from imagen_pl.storage.model_paths import model_file

# Of a folder that another program wrote: a picture for each caption (benchmarks/baselines/handover.py).
PICTURES = "pictures.npy"
EXTRACTORS: dict[str, type[Extractor]] = {e.name: e for e in (EfficientNetLite0, EfficientNetLite1)}


def draw_pictures(
    model: TextToImage, reference: ReferenceSet, guidance: float = 1.0, refine: int = 0
) -> Images:
    """A picture for each caption, each with a seed of its own."""
    pairs = [(reference.pictures[row].caption, reference.seed + k) for k, row in enumerate(reference.asked)]
    pictures = tqdm(model.draw(pairs, guidance=guidance, refine=refine), total=len(pairs), delay=10)
    drawn = [torch.from_numpy(np.array(picture)) for picture in pictures]
    return shrink(torch.stack(drawn).permute(0, 3, 1, 2), reference.resolution)


def read_drawn(folder: Path, reference: ReferenceSet) -> Images:
    """The pictures that another program wrote."""
    drawn = torch.from_numpy(np.load(folder / PICTURES)).permute(0, 3, 1, 2)
    if len(drawn) != len(reference.asked) or reference.seed != 0:
        raise UserError(
            f"{folder} holds {len(drawn)} pictures, for other captions than --seed {reference.seed} asks"
        )
    return shrink(drawn, reference.resolution)


def training_cost(path: Path, model: TextToImage) -> TrainingCost:
    """From a run's checkpoint and metrics.csv; a release keeps little of it."""
    seen = model.description.get("images_seen")
    drawer = sum(p.numel() for p in model.generator.parameters())
    if not (path / "metrics.csv").is_file():
        return TrainingCost(images_seen=seen, generator_parameters=drawer)
    rows = read_metrics(path / "metrics.csv")
    held = read_checkpoint(model_file(path), mmap=True)["state_dict"]
    memory = [row["train/peak_memory_gb"] for row in rows if "train/peak_memory_gb" in row]
    return TrainingCost(
        images_seen=seen,
        images_per_second=images_per_second(rows),
        generator_parameters=drawer,
        discriminator_parameters=sum(held[n].numel() for n in held if n.startswith("discriminator.")),
        peak_memory_gb=max(memory, default=None),
    )


# ------------------------------------------------------------------ the table


def table(scores: list[Score]) -> str:
    lines = [
        "| | images/s | images seen | parameters G + D | peak memory | FD | KD "
        "| top-1 / top-5 / MRR (shuffled) | test subjects (shuffled) |",
        "|" + "---|" * 9,
    ]
    for s in scores:
        fd = "" if s.fd is None else f"{s.fd:.1f}"
        kd = "" if s.kd is None else f"{s.kd:.4f}"
        both = (pair(s.retrieval, s.shuffled), pair(s.test_retrieval, s.test_shuffled))
        lines.append(f"| {s.name} | {cost(s.took)} | {fd} | {kd} | {both[0]} | {both[1]} |")
    return "\n".join(lines)


def cost(took: TrainingCost | None) -> str:
    """Four cells."""
    if took is None:
        return " | | | "
    millions = [
        f"{n / 1e6:.2f} M"
        for n in (took.generator_parameters, took.discriminator_parameters)
        if n is not None
    ]
    speed = "" if took.images_per_second is None else f"{took.images_per_second:.1f}"
    seen = "" if took.images_seen is None else f"{took.images_seen:,}"
    memory = "" if took.peak_memory_gb is None else f"{took.peak_memory_gb:.1f} GiB"
    return f"{speed} | {seen} | {' + '.join(millions)} | {memory}"


def pair(found: Retrieval | None, shuffled: Retrieval | None) -> str:
    if found is None or shuffled is None:
        return ""
    numbers = (f"{r.top1:.1%} / {r.top5:.1%} / {r.mrr:.3f}" for r in (found, shuffled))
    return "{} ({})".format(*numbers)


def circumstances(reference: ReferenceSet, extractor: Extractor, models: list[Path]) -> dict[str, Any]:
    return {
        "command": command_line(),
        "git": git_state(),
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.platform()},
        "torch": torch.__version__,
        "models": [str(path) for path in models],
        "data": SHIPPED.name,
        "extractor": extractor.name,
        "resolution": reference.resolution,
        "seed": reference.seed,
        "captions": COUNTS,
        "reals": len(reference.rest),
    }


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
        "--guidance",
        type=float,
        default=1.0,
        help="0 to 10; above 1 the picture follows the prompt more closely",
    )
    parser.add_argument("--refine", type=int, default=0, help="steps towards the prior's guess")
    options = parser.parse_args()
    try:
        settings = (options.seed, options.resolution, options.extractor, options.guidance, options.refine)
        run(options.models, options.out, *settings)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


def check_teachers(path: Path, model: TextToImage, extractor: Extractor) -> None:
    """Raise UserError where a model has learnt from the features that it is to be scored on."""
    teachers = [str(name) for name in model.description.get("teacher_networks", [])]
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
    refine: int = 0,
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
    reference = make_reference(extractor, resolution, seed)
    scores = []
    pictures: dict[str, Images] = {}
    for path, model in loaded:
        pictures[str(path)] = draw_pictures(model, reference, guidance, refine)
        features = extract(extractor, pictures[str(path)], str(path))
        scores.append(replace(score(reference, str(path), features), took=training_cost(path, model)))
    for path in drawn:
        pictures[str(path)] = read_drawn(path, reference)
        features = extract(extractor, pictures[str(path)], str(path))
        about = json.loads((path / "about.json").read_text())
        took = TrainingCost(**{f.name: about.get(f.name) for f in fields(TrainingCost)})
        scores.append(replace(score(reference, str(path), features), took=took))
    scores += score_real(reference, extractor)
    about = circumstances(reference, extractor, models)
    about |= {"guidance": guidance, "refine": refine}
    about["seconds"] = round(time.monotonic() - start, 1)
    counts = ", ".join(f"{count} of {split}" for split, count in COUNTS.items())
    print(
        f"{extractor.name} features, {resolution} px, seed {seed}, {len(reference.asked):,} captions "
        f"({counts}), against {len(reference.rest):,} real images\n"
    )
    print(table(scores))
    with atomic_write(out) as file:
        file.write((json.dumps({**about, "scores": [asdict(s) for s in scores]}, indent=2) + "\n").encode())
    sheet(reference, pictures).save(out.with_suffix(".png"))


def sheet(reference: ReferenceSet, pictures: Mapping[str, Images]) -> Image.Image:
    """The same captions, eight of train and eight of test, by each model: real ones first, a row each."""
    rows = {
        split: [k for k, row in enumerate(reference.asked) if reference.pictures[row].split == split]
        for split in ("train", "test")
    }
    shown = [k for each in rows.values() for k in each[len(each) // 16 :: len(each) // 8][:8]]
    captions = [reference.pictures[reference.asked[k]].caption for k in shown]
    cells, labels = to_pil(reference.images[[reference.asked[k] for k in shown]]), captions
    for name, drawn in pictures.items():
        cells += to_pil(drawn[shown])
        labels = [*labels, name, *[" "] * (len(shown) - 1)]
    return labelled_grid(cells, labels, columns=len(shown))


if __name__ == "__main__":
    main()
