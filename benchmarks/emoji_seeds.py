"""How much the seeds of a prompt vary that names a subject alone, such as "cupcake", on the shipped emoji.

    python -m benchmarks.emoji_seeds emoji
    python -m benchmarks.emoji_seeds runs/a runs/b --out seeds.json

Subjects that stand in all three styles: a hundred that were learnt, a hundred of the test split. A row draws
eight seeds of each subject, or of each subject in one style. Prints a Markdown table, and writes the same as
JSON with the command, commit and machine.

- Diversity: mean distance between two of the eight pictures, over that between two of the subject's real
  pictures in three styles. A caption that names a style has one real picture, so 0 is right for it.
- Top-1 and top-5: the subjects are ranked by the similarity of their most similar real picture to the one
  that was drawn; chance is 1% and 5%. The row "real" leaves out the picture that is asked about.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

import imagen_pl
from benchmarks.icons import markdown
from benchmarks.machine import command_line, machine
from benchmarks.protocol import Images, Picture, extract, read_pictures
from benchmarks.quality import EXTRACTORS, check_teachers
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.data.build_emoji import STYLES
from imagen_pl.data.transforms import decode
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.storage.atomic_files import atomic_write

SUBJECTS, SEEDS = 100, 8
SPLITS = ("train", "test")


@dataclass(frozen=True)
class SeedScore:
    """One row of the table."""

    model: str
    split: str
    prompts: str
    diversity: float
    diversity_error: float
    top1: float
    top5: float


def subjects_of(
    pictures: Sequence[Picture], split: str, seed: int, most: int = SUBJECTS
) -> dict[str, list[int]]:
    """Names of subjects with a picture of every style in the split, and the rows of those pictures."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for i, picture in enumerate(pictures):
        if picture.split == split:
            rows[picture.caption.removesuffix(f", {picture.style} style")].append(i)
    complete = sorted(name for name, found in rows.items() if len(found) == len(STYLES))
    chosen = np.random.default_rng(seed).choice(complete, min(most, len(complete)), replace=False)
    return {str(name): rows[name] for name in sorted(chosen)}


def score(
    model: str, split: str, prompts: str, drawn: Float[Tensor, "p k f"], real: Float[Tensor, "p s f"]
) -> SeedScore:
    """Compare the pictures of each subject with its real ones."""
    ratios = spread(drawn) / spread(real)
    first, five = ranks(drawn, real)
    error = float(ratios.std() / len(ratios) ** 0.5)
    return SeedScore(model, split, prompts, float(ratios.mean()), error, first, five)


def spread(features: Float[Tensor, "p k f"]) -> Float[Tensor, " p"]:
    """Mean distance between two pictures of each subject."""
    return torch.stack([torch.pdist(each.double()).mean() for each in features])


def ranks(
    drawn: Float[Tensor, "p k f"], real: Float[Tensor, "p s f"], own: bool = True
) -> tuple[float, float]:
    """Top-1 and top-5 of the right subject; without `own`, `drawn` are the real pictures themselves."""
    centre = real.flatten(0, 1).mean(0)
    a, b = (F.normalize(x - centre, dim=-1) for x in (drawn, real))
    similar = torch.einsum("pkf,qsf->pkqs", a, b)
    if not own:
        p, k = torch.meshgrid(torch.arange(len(a)), torch.arange(a.shape[1]), indexing="ij")
        similar[p, k, p, k] = -1.0
    nearest = similar.amax(3)
    right = nearest.diagonal(dim1=0, dim2=2).T[..., None]
    place = (nearest > right).sum(2)
    return float((place < 1).float().mean()), float((place < 5).float().mean())


def draw(model: TextToImage, captions: Sequence[str], refine: int) -> Images:
    """Eight seeds of each caption."""
    pictures = model.draw([(caption, seed) for caption in captions for seed in range(SEEDS)], refine=refine)
    return torch.stack([torch.from_numpy(np.array(each)).permute(2, 0, 1) for each in pictures])


def table(scores: Sequence[SeedScore]) -> str:
    head = ["", "subjects", "prompts", "diversity", "top-1", "top-5"]
    rows = [
        [
            s.model,
            s.split,
            s.prompts,
            f"{s.diversity:.2f} ± {s.diversity_error:.2f}",
            f"{s.top1:.0%}",
            f"{s.top5:.0%}",
        ]
        for s in scores
    ]
    return markdown(head, rows)


def run(
    models: list[Path], out: Path, extractor_name: str, seed: int, refine: int = 0, most: int = SUBJECTS
) -> None:
    extractor = EXTRACTORS[extractor_name]()
    loaded = {path.name: imagen_pl.load(path, device="cpu") for path in models}
    for path, model in zip(models, loaded.values(), strict=True):
        check_teachers(path, model, extractor)
    pictures, encoded = read_pictures()
    scores = []
    for split in SPLITS:
        subjects = subjects_of(pictures, split, seed, most)
        images = torch.stack([decode(encoded[i], 64) for rows in subjects.values() for i in rows])
        real = extract(extractor, images, "real pictures").unflatten(0, (len(subjects), -1))
        scores.append(SeedScore("real", split, "subject", 1.0, 0.0, *ranks(real, real, own=False)))
        styles = [pictures[rows[k % len(rows)]].style for k, rows in enumerate(subjects.values())]
        in_style = [f"{name}, {style} style" for name, style in zip(subjects, styles, strict=True)]
        for name, model in loaded.items():
            for prompts, captions in (("subject", list(subjects)), ("subject and style", in_style)):
                features = extract(extractor, draw(model, captions, refine), name).unflatten(0, (-1, SEEDS))
                scores.append(score(name, split, prompts, features, real))
    print(table(scores))
    about: dict[str, Any] = {
        "command": command_line(),
        "git": git_state(),
        "machine": machine(),
        "extractor": extractor.name,
        "seed": seed,
        "refine": refine,
        "scores": [asdict(each) for each in scores],
    }
    with atomic_write(out) as file:
        file.write((json.dumps(about, indent=2) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+", help="runs, checkpoints or releases")
    parser.add_argument("--extractor", choices=EXTRACTORS, default="efficientnet_lite1", help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="which subjects")
    parser.add_argument("--subjects", type=int, default=SUBJECTS, help="of each split; default: %(default)s")
    parser.add_argument("--refine", type=int, default=0, help="steps towards the prior's guess; %(default)s")
    parser.add_argument("--out", type=Path, default=Path("seeds.json"), help="default: %(default)s")
    options = parser.parse_args()
    run(options.models, options.out, options.extractor, options.seed, options.refine, options.subjects)


if __name__ == "__main__":
    main()
