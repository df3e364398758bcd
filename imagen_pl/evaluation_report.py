"""What `imagen-pl evaluate` tells people."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from imagen_pl.metrics.evaluation import Evaluation, Memorisation
from imagen_pl.metrics.retrieval import Retrieval

# Below so many pictures a Fréchet distance is mostly as large as its sample is small.
_FEW = 2048


def report(about: dict[str, Any], found: list[Evaluation]) -> Iterator[str]:
    """Lines of Markdown.

    Args:
        about: how it was made, as evaluation.json holds it.
        found: scores by one network each.
    """
    yield (
        f"{about['model']}: {about['pictures']:,} pictures, one a caption, against "
        f"{about['real_images']:,} real images of the split {about['split']} at "
        f"{about['resolution']} px, seed {about['seed']}, truncation {about['truncation']:g}, "
        f"guidance {about['guidance']:g}"
    )
    yield ""
    yield "| | " + " | ".join(each.extractor for each in found) + " |"
    yield "|---|" + "---|" * len(found)
    for label, cells in _cells(found).items():
        yield f"| {label} | " + " | ".join(cells) + " |"
    if "clip_score" in about:
        yield f"\nCLIP score {about['clip_score']:.2f}"
    yield (
        "\nOf Inception (inception_v3) the Fréchet and the kernel distance are FID and KID; of CLIP "
        "ViT-L/14 at 336 px the Gaussian discrepancy is CMMD; of other networks they are neither."
    )
    if about["pictures"] < _FEW:
        yield (
            f"\n{about['pictures']:,} pictures are few: a Fréchet distance is too large by the sampling "
            "alone, the more so the fewer there are. Hold it against what halves of the real images score, "
            "and compare models at equal numbers alone."
        )


def _cells(found: list[Evaluation]) -> dict[str, list[str]]:
    """By row of the table, a cell for each network."""
    rows: dict[str, list[str]] = {}
    for e in found:
        chance = "" if e.retrieval is None else f" of {e.retrieval.candidates}"
        cells = {
            "Fréchet distance (less is better)": _told(e.frechet, "{:.2f}"),
            "the same, one half of the real images against the other": _told(e.frechet_of_halves, "{:.2f}"),
            "kernel distance (less is better)": _told(e.kernel, "{:.4f}"),
            "Gaussian discrepancy (less is better)": _told(e.mmd, "{:.3f}"),
            "precision": _told(e.precision, "{:.3f}"),
            "recall": _told(e.recall, "{:.3f}"),
            "density": _told(e.density, "{:.3f}"),
            "coverage": _told(e.coverage, "{:.3f}"),
            f"right subject first{chance} (captions shuffled)": _both(e, "top1", "{:.1%}"),
            f"among the first five{chance} (captions shuffled)": _both(e, "top5", "{:.1%}"),
            "mean reciprocal rank (captions shuffled)": _both(e, "mrr", "{:.3f}"),
            "diversity within a prompt (1: as real images of different captions)": _told(
                e.diversity, "{:.3f}"
            ),
            "distance to the nearest training image, by that of real images": _told(
                _part(e.memorisation, "ratio"), "{:.3f}"
            ),
            "pictures nearer to one than 99% of real images": _told(_part(e.memorisation, "near"), "{:.1%}"),
        }
        for label, cell in cells.items():
            rows.setdefault(label, []).append(cell)
    return rows


def _both(e: Evaluation, name: str, form: str) -> str:
    right, shuffled = (_told(_part(each, name), form) for each in (e.retrieval, e.shuffled))
    return f"{right} ({shuffled})" if right else ""


def _part(scores: Retrieval | Memorisation | None, name: str) -> float | None:
    return None if scores is None else float(getattr(scores, name))


def _told(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else form.format(value)
