"""Whether a picture shows its subject: is it nearer to the subject's real image than to others?

Axes: n pictures, f features.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from imagen_pl.errors import UserError

_ROWS = 1024
# The last digits of equal images' cosines depend on where they stand in a product of matrices.
_SAME = 1e-12


@dataclass(frozen=True)
class Retrieval:
    """How often the true subject was found, 0 to 1.

    top1, top5: share of pictures whose true subject is the nearest, or among the five nearest.
    mrr: mean of 1 / rank.
    queries: n, how many pictures were asked for.
    candidates: real images that each picture was compared with, the true one among them. Chance is
        1 / candidates for top1 and 5 / candidates for top5.
    """

    top1: float
    top5: float
    mrr: float
    queries: int
    candidates: int


def retrieval_accuracy(
    pictures: Float[Tensor, "n f"],
    real: Float[Tensor, "n f"],
    subjects: Sequence[Hashable],
    styles: Sequence[Hashable],
    *,
    seed: int = 0,
    distractors: int = 99,
    shuffled: bool = False,
) -> Retrieval:
    """Rank each picture's true real image among real images of other subjects in the same style.

    Images are compared by the cosine of their features, less the mean of `real`: without that all are
    alike. Row i of `pictures` was drawn for subjects[i] in styles[i], of which row i of `real` is the true
    image; its distractors are other rows of `real`, drawn with `seed`. So queries and distractors are
    drawn alike, if each subject comes once in a style: not in all its skin tones, which look alike.
    An image that is exactly as near as the true one counts as nearer.

    Args:
        shuffled: ask each picture for another row's subject of the same style. What is left is what one
            gets without heeding the caption: print it beside the score. Distractors stay the same.

    Raises:
        UserError: a style holds too few subjects for so many distractors.
    """
    count = len(subjects)
    if not len(pictures) == len(real) == len(styles) == count > 0:
        raise ValueError(
            f"{len(pictures)} pictures, {len(real)} real images, {count} subjects and {len(styles)} styles "
            "are not as many, or none"
        )
    draw = np.random.default_rng(seed)
    rivals = draw_rivals(subjects, styles, distractors, draw)
    asked = other_of_same_style(subjects, styles, draw) if shuffled else torch.arange(count)
    mean = real.double().mean(0)
    a, b = (torch.nn.functional.normalize(x.double() - mean, dim=1) for x in (pictures, real))
    # (n, 1 + distractors): the true image comes first. Row i of `asked` is the picture that is asked for
    # row i's subject.
    candidates = torch.cat([torch.arange(count)[:, None], rivals], 1)
    parts = zip(asked.split(_ROWS), candidates.split(_ROWS), strict=True)
    nearness = torch.cat([(a[rows] @ b.T).gather(1, columns) for rows, columns in parts])
    # Features that are no numbers are nearest to nothing.
    ahead = ~(nearness[:, 1:] < nearness[:, :1] - _SAME)
    return of_ranks(1 + ahead.sum(1), candidates=1 + distractors)


def of_ranks(ranks: Int64[Tensor, " n"], candidates: int) -> Retrieval:
    """How often the true one was found.

    Args:
        ranks: of the true one, 1 for the first.
        candidates: how many were ranked.
    """
    rank = ranks.double()
    return Retrieval(
        top1=float((rank <= 1).double().mean()),
        top5=float((rank <= 5).double().mean()),
        mrr=float((1 / rank).mean()),
        queries=len(rank),
        candidates=candidates,
    )


def draw_rivals(
    subjects: Sequence[Hashable], styles: Sequence[Hashable], distractors: int, draw: np.random.Generator
) -> Int64[Tensor, "n d"]:
    """For each row, other rows of its style: one of each of `distractors` other subjects."""
    rows_of: dict[Hashable, dict[Hashable, list[int]]] = {}
    for i, (subject, style) in enumerate(zip(subjects, styles, strict=True)):
        rows_of.setdefault(style, {}).setdefault(subject, []).append(i)
    rivals = np.zeros((len(subjects), distractors), dtype=np.int64)
    for i, (subject, style) in enumerate(zip(subjects, styles, strict=True)):
        others = [rows for other, rows in rows_of[style].items() if other != subject]
        if len(others) < distractors:
            raise UserError(
                f"style {style} holds {1 + len(others)} subjects: {distractors} distractors need "
                f"{1 + distractors}"
            )
        chosen = draw.choice(len(others), distractors, replace=False)
        rivals[i] = [others[k][draw.integers(len(others[k]))] for k in chosen]
    return torch.from_numpy(rivals)


def other_of_same_style(
    subjects: Sequence[Hashable], styles: Sequence[Hashable], draw: np.random.Generator
) -> Int64[Tensor, " n"]:
    """For each row, another one of its style and of another subject; each row is taken once."""
    others = np.zeros(len(subjects), dtype=np.int64)
    for style in dict.fromkeys(styles):
        rows = np.array([i for i, s in enumerate(styles) if s == style])
        # Rows of one subject stay together in a ring, in random order; turning it by the largest
        # subject's size parts every row from its own.
        names = [subjects[i] for i in rows]
        sizes = {name: names.count(name) for name in names}
        place = dict(zip(sizes, draw.permutation(len(sizes)), strict=True))
        ring = rows[sorted(range(len(rows)), key=lambda k: int(place[names[k]]))]
        others[ring] = np.roll(ring, max(sizes.values()))
    return torch.from_numpy(others)
