"""Whether a generated image shows its subject: is it nearer to the subject's real image than to others?

Pictures are generated images.

Axes: n pictures, f features, d distractors.
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
# Cosines of equal images may differ in their last digits, by their position in the matrix product.
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Retrieval:
    """How often the true subject was found, 0 to 1.

    top1, top5: share of pictures whose true subject is the nearest, or among the five nearest.
    mrr: mean reciprocal rank, the mean of 1 / rank.
    queries: n, the number of pictures.
    candidates: number of real images that each picture was compared with, including the true one. Chance
        is 1 / candidates for top1 and 5 / candidates for top5.
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

    Images are compared by the cosine of their features after the mean of `real` is subtracted; without that
    all cosines are nearly equal. Row i of `pictures` was generated for subjects[i] in styles[i], and row i of
    `real` is the true image. Its distractors are other rows of `real`, sampled with `seed`. So queries and
    distractors have the same distribution, if each subject occurs once in a style: not in all its skin
    tones, which look alike. An image that is exactly as near as the true one counts as nearer.

    Args:
        pictures: features of the generated images.
        real: features of the real images.
        subjects, styles: subject and style of each row.
        seed: seed of the distractors and of the shuffling.
        distractors: number of distractors of each picture.
        shuffled: score each picture against another row's subject of the same style. The result is the
            baseline that ignores the caption: print it beside the score. Distractors stay the same.

    Raises:
        UserError: a style has too few subjects for that many distractors.
        ValueError: the numbers of rows differ or are 0.
    """
    count = len(subjects)
    if not len(pictures) == len(real) == len(styles) == count > 0:
        raise ValueError(
            f"{len(pictures)} pictures, {len(real)} real images, {count} subjects and {len(styles)} styles "
            "must be equally many, and at least one"
        )
    rng = np.random.default_rng(seed)
    sampled = sample_distractors(subjects, styles, distractors, rng)
    targets = other_of_same_style(subjects, styles, rng) if shuffled else torch.arange(count)
    mean = real.double().mean(0)
    a, b = (torch.nn.functional.normalize(x.double() - mean, dim=1) for x in (pictures, real))
    # (n, 1 + distractors): the true image comes first. targets[i] is the picture that is scored against
    # row i's subject.
    candidates = torch.cat([torch.arange(count)[:, None], sampled], 1)
    parts = zip(targets.split(_ROWS), candidates.split(_ROWS), strict=True)
    nearness = torch.cat([(a[rows] @ b.T).gather(1, columns) for rows, columns in parts])
    # Written as a negation so that NaN features rank last.
    is_nearer = ~(nearness[:, 1:] < nearness[:, :1] - _TOLERANCE)
    return of_ranks(1 + is_nearer.sum(1), candidates=1 + distractors)


def of_ranks(ranks: Int64[Tensor, " n"], candidates: int) -> Retrieval:
    """Retrieval scores from the ranks of the true images.

    Args:
        ranks: rank of the true image for each picture, 1 for the nearest.
        candidates: number of images that were ranked.
    """
    rank = ranks.double()
    return Retrieval(
        top1=float((rank <= 1).double().mean()),
        top5=float((rank <= 5).double().mean()),
        mrr=float((1 / rank).mean()),
        queries=len(rank),
        candidates=candidates,
    )


def sample_distractors(
    subjects: Sequence[Hashable], styles: Sequence[Hashable], distractors: int, rng: np.random.Generator
) -> Int64[Tensor, "n d"]:
    """For each row, other rows of the same style: one for each of `distractors` other subjects."""
    rows_of: dict[Hashable, dict[Hashable, list[int]]] = {}
    for i, (subject, style) in enumerate(zip(subjects, styles, strict=True)):
        rows_of.setdefault(style, {}).setdefault(subject, []).append(i)
    sampled = np.zeros((len(subjects), distractors), dtype=np.int64)
    for i, (subject, style) in enumerate(zip(subjects, styles, strict=True)):
        others = [rows for other, rows in rows_of[style].items() if other != subject]
        if len(others) < distractors:
            raise UserError(
                f"{_group(style)} {1 + len(others)} subjects: {distractors} distractors need "
                f"{1 + distractors}; use at most {len(others)} distractors, or more pictures"
            )
        chosen = rng.choice(len(others), distractors, replace=False)
        sampled[i] = [others[k][rng.integers(len(others[k]))] for k in chosen]
    return torch.from_numpy(sampled)


def _group(style: Hashable) -> str:
    """Start of a message about a style; captions without a style are one group."""
    if style == "":
        return "the captions name"
    return f"{style} holds" if str(style).endswith(" style") else f"style {style} holds"


def other_of_same_style(
    subjects: Sequence[Hashable], styles: Sequence[Hashable], rng: np.random.Generator
) -> Int64[Tensor, " n"]:
    """For each row, a row of the same style and another subject; each row is used once."""
    others = np.zeros(len(subjects), dtype=np.int64)
    for style in dict.fromkeys(styles):
        rows = np.array([i for i, s in enumerate(styles) if s == style])
        # Subjects are put in random order, rows of one subject next to each other; rotating the list by the
        # size of the largest subject pairs every row with another subject.
        names = [subjects[i] for i in rows]
        sizes = {name: names.count(name) for name in names}
        rank_of = dict(zip(sizes, rng.permutation(len(sizes)), strict=True))
        ordered = rows[sorted(range(len(rows)), key=lambda k: int(rank_of[names[k]]))]
        others[ordered] = np.roll(ordered, max(sizes.values()))
    return torch.from_numpy(others)
