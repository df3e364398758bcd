"""Which of two names that differ in one word a captioner reads in an icon, real or drawn by a model.

    python -m benchmarks.caption_pairs runs/captioner_icons --icons icons64 --models icons runs/a

The pairs are those of benchmarks/icons.py, such as "bell" and "bell off". The captioner is right if the own
name of an icon is likelier, over all tokens, than the other one; chance is a half. The first row, real icons,
is what its loss can teach a generator at most.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import imagen_pl
from benchmarks.icon_reference import Contrast, Reference, make_reference
from benchmarks.icons import markdown, of_number
from imagen_pl.data.sources.icons import IconSource
from imagen_pl.data.transforms import decode
from imagen_pl.errors import UserError
from imagen_pl.inference.captioning import load_captioner
from imagen_pl.models.captioner.model import Captioner, evaluating

BATCH = 64
SEED = 5000  # of the first pair's sample, as in benchmarks/icons.py


def read_pairs(
    captioner: Captioner, images: Float[Tensor, "n 3 r r"], names: Sequence[tuple[str, str]]
) -> list[bool]:
    """For each image, whether the first of its two names is likelier.

    Args:
        captioner: the captioner.
        images: -1 to 1.
        names: the own name of each image, and the other one of its pair.
    """
    found: list[bool] = []
    with torch.no_grad(), evaluating(captioner):
        for start in range(0, len(names), BATCH):
            rows = slice(start, start + BATCH)
            memory = captioner.extract_features(images[rows])
            own, other = (
                captioner.log_likelihood(memory, list(each)) for each in zip(*names[rows], strict=True)
            )
            found += (own > other).tolist()
    return found


def by_group(contrasts: Sequence[Contrast], right: Sequence[bool]) -> dict[str, tuple[float, int]]:
    """The share of right answers and their number, by category and by whether the pair was learnt."""
    groups: defaultdict[str, list[bool]] = defaultdict(list)
    for contrast, answer in zip(contrasts, right, strict=True):
        groups[contrast.group].append(answer)
    return {group: (sum(answers) / len(answers), len(answers)) for group, answers in sorted(groups.items())}


def names_of(reference: Reference) -> list[tuple[str, str]]:
    rows = reference.rows
    return [(rows[each.own].words, rows[each.other].words) for each in reference.contrasts]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("captioner", type=Path, help="a run of fit-captioner on the icons")
    parser.add_argument("--icons", type=Path, required=True, help="folder that `imagen-pl data icons` wrote")
    parser.add_argument("--models", nargs="*", type=Path, default=[], help="runs, checkpoints or releases")
    o = parser.parse_args()
    try:
        captioner = load_captioner(o.captioner, "cpu").captioner
        reference = make_reference(IconSource(str(o.icons)).icon_rows(), "validation", seed=0)
        real = [decode(reference.rows[each.own].image, 64) for each in reference.contrasts]
        sources = {"real icons": torch.stack(real)}
        asked = [(each.caption, SEED + i) for i, each in enumerate(reference.contrasts)]
        for path in o.models:
            drawn = imagen_pl.load(path, "cpu").draw(asked, guidance=1.0, refine=0)
            sources[str(path)] = torch.stack([torch.from_numpy(np.array(each)) for each in drawn]).permute(
                0, 3, 1, 2
            )
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    rows = {}
    for name, images in sources.items():
        right = read_pairs(captioner, images.float() / 127.5 - 1, names_of(reference))
        rows[name] = by_group(reference.contrasts, right)
    groups = list(rows["real icons"])
    print(
        markdown(
            ["", *groups], [[name, *(of_number(found[g]) for g in groups)] for name, found in rows.items()]
        )
    )


if __name__ == "__main__":
    main()
