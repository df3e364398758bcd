"""How well pictures are projected: ten of the model's own, and ten real icons of subjects that it never saw.

    python -m benchmarks.projection icons --out benchmarks/results/projection.json

Each picture is projected with one style for all resolutions (w) and with one for each (w+). Prints a
Markdown table, and writes the same as JSON with the command, commit and machine, and a grid of the pictures
beside it.

- PSNR: peak signal-to-noise ratio.
- Distance: LPIPS without learnt weights, in the features of EfficientNet-Lite1; the search uses Lite0's.
- Own style: cosine similarity of the style found and the one that drew the picture (for w+ the mean over
  resolutions); in brackets, of the mean style of the caption, where the search starts.
- Another real icon: the distance of two real icons of one subject.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import imagen_pl
from benchmarks.icons import markdown
from benchmarks.machine import command_line, machine
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.icons import IconSource
from imagen_pl.data.transforms import decode
from imagen_pl.imaging.grids import labelled_grid, to_pil, to_uint8
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.inference.projection import (
    drawn_with,
    mean_style,
    perceptual_distance,
    project,
    projectable,
    psnr,
)
from imagen_pl.models.latents import latents
from imagen_pl.models.pretrained.backbones import TimmBackbone
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.types import TextFeatures

OWN = (
    "bell, outline",
    "camera, filled",
    "shopping cart",
    "heart, outline",
    "home",
    "star, filled",
    "calendar",
    "folder, duotone",
    "key",
    "umbrella, outline",
)
MAPS = [0, 1, 2, 3, 4]


@dataclass(frozen=True)
class ProjectionScore:
    """One row of the table."""

    pictures: str
    space: str
    psnr: float
    psnr_worst: float
    distance: float
    own_style: float | None
    start_style: float | None
    seconds: float


def own_pictures(model: TextToImage) -> tuple[list[str], Tensor, Tensor]:
    """Captions, the pictures that the model draws of them, -1 to 1, and their styles."""
    generator = projectable(model.generator)
    captions = list(OWN)
    text = model.text_encoder.encode(captions, model.device)
    z = torch.cat([latents([0], seed, generator.latent_dim) for seed in range(len(captions))])
    styles = generator.style(z, text)
    return captions, drawn_with(generator, styles[:, None], text, model.growth), styles


def real_pictures(resolution: int, seed: int) -> tuple[list[str], Tensor, Tensor]:
    """Captions and icons of ten subjects of the test split, and another icon of each of these subjects."""
    source = IconSource()
    splits = source.load(SkippedImages())
    rows, learnt = splits["test"], {row.captions[0] for row in splits["train"]}
    subjects: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        subjects.setdefault(row.captions[0], []).append(i)
    several = sorted(name for name, found in subjects.items() if len(found) > 1 and name not in learnt)
    order = torch.randperm(len(several), generator=torch.Generator().manual_seed(seed))
    chosen = [subjects[several[k]] for k in order[: len(OWN)]]

    def decoded(place: int) -> Tensor:
        images = [decode(source.image(rows[found[place]]), resolution) for found in chosen]
        return torch.stack(images).float() / 127.5 - 1

    # The second of an icon's captions: the subject and how it is drawn, without the set.
    captions = [rows[found[0]].captions[min(1, len(rows[found[0]].captions) - 1)] for found in chosen]
    return captions, decoded(0), decoded(1)


def score(
    model: TextToImage,
    name: str,
    images: Float[Tensor, "b 3 r r"],
    captions: list[str],
    styles: Tensor | None,
    per_resolution: bool,
    steps: int,
) -> tuple[ProjectionScore, Float[Tensor, "b 3 r r"]]:
    """A row of the table, and what the model draws."""
    generator = projectable(model.generator)
    size = max(64, model.resolution)
    teacher, judge = (TimmBackbone(f"efficientnet_lite{k}", size, maps=MAPS) for k in (0, 1))
    text: TextFeatures = model.text_encoder.encode(captions, model.device)
    begun = time.perf_counter()
    found = project(generator, images, text, model.growth, teacher, steps, per_resolution)
    seconds = (time.perf_counter() - begun) / len(images)
    drawn = drawn_with(generator, found, text, model.growth)
    own, start = None, None
    if styles is not None:
        mean = mean_style(generator, text, torch.Generator().manual_seed(0))
        own = float(torch.cosine_similarity(found, styles[:, None], dim=-1).mean())
        start = float(torch.cosine_similarity(mean, styles, dim=-1).mean())
    decibels = psnr(drawn, images)
    distance = float(perceptual_distance(judge, drawn, images).mean())
    space = "w+" if per_resolution else "w"
    row = ProjectionScore(
        name, space, float(decibels.mean()), float(decibels.min()), distance, own, start, seconds
    )
    return row, drawn


def table(scores: list[ProjectionScore], another: float) -> str:
    head = ["pictures", "space", "PSNR, dB (worst)", "distance", "own style (start)", "seconds a picture"]
    rows = [
        [
            s.pictures,
            s.space,
            f"{s.psnr:.1f} ({s.psnr_worst:.1f})",
            f"{s.distance:.3f}",
            "" if s.own_style is None else f"{s.own_style:.3f} ({s.start_style:.3f})",
            f"{s.seconds:.1f}",
        ]
        for s in scores
    ]
    return markdown(head, [*rows, ["another real icon", "", "", f"{another:.3f}", "", ""]])


def run(path: Path, out: Path, steps: int, seed: int) -> None:
    model = imagen_pl.load(path, device="cpu")
    captions, own, styles = own_pictures(model)
    named, real, other = real_pictures(model.resolution, seed)
    scores, rows = [], [own]
    for per_resolution in (False, True):
        row, drawn = score(model, "its own", own, captions, styles, per_resolution, steps)
        scores.append(row)
        rows.append(drawn)
    rows.append(real)
    for per_resolution in (False, True):
        row, drawn = score(model, "real, new subjects", real, named, None, per_resolution, steps)
        scores.append(row)
        rows.append(drawn)
    judge = TimmBackbone("efficientnet_lite1", max(64, model.resolution), maps=MAPS)
    another = float(perceptual_distance(judge, other, real).mean())
    print(table(scores, another))
    spaces = [[space] * len(OWN) for space in ("w", "w+")]
    labels = [captions, *spaces, named, *spaces]
    pictures = [each for row in rows for each in to_pil(to_uint8(row))]
    grid = labelled_grid(pictures, [label for row in labels for label in row], columns=len(OWN))
    out.parent.mkdir(parents=True, exist_ok=True)
    grid.save(out.with_suffix(".png"))
    about: dict[str, Any] = {
        "command": command_line(),
        "git": git_state(),
        "machine": machine(),
        "steps": steps,
        "seed": seed,
        "scores": [asdict(each) for each in scores],
        "another_real_icon": another,
    }
    with atomic_write(out) as file:
        file.write((json.dumps(about, indent=2) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a run, a checkpoint or a release, trained on icons")
    parser.add_argument("--steps", type=int, default=300, help="of the search; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="which real icons")
    parser.add_argument("--out", type=Path, default=Path("projection.json"), help="default: %(default)s")
    options = parser.parse_args()
    run(options.model, options.out, options.steps, options.seed)


if __name__ == "__main__":
    main()
