"""The report of `imagen-pl evaluate`: its text and the table of scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imagen_pl.metrics.distances import FEW
from imagen_pl.metrics.evaluation import Evaluation, MemorisationScores
from imagen_pl.metrics.retrieval import Retrieval


def evaluation_report(about: Mapping[str, Any], found: Sequence[Evaluation]) -> Iterator[str]:
    """Lines of Markdown.

    Args:
        about: settings of the evaluation, as stored in evaluation.json.
        found: the scores, one item for each network.
    """
    yield (
        f"{about['model']}: {about['pictures']:,} pictures, one per caption, against "
        f"{about['real_images']:,} real images of the split {about['split']} at "
        f"{about['resolution']} px, seed {about['seed']}, truncation {about['truncation']:g}, "
        f"guidance {about['guidance']:g}, refine {about['refine']}"
    )
    yield ""
    yield from score_table([(each.extractor, each) for each in found])
    if "clip_score" in about:
        yield f"\nCLIP score {about['clip_score']:.2f} ({about['clip']}, {about['pictures']:,} pictures)"
    yield (
        "\nIn features of Inception (inception_v3), the Fréchet distance is FID and the kernel distance KID; "
        "in those of CLIP ViT-L/14 at 336 px, the Gaussian discrepancy is CMMD. For other networks, these "
        "names do not apply."
    )
    fewer = min(about["pictures"], about["real_images"])
    if fewer < FEW:
        yield f"\n{bias_of_few(fewer)}"


def bias_of_few(images: int) -> str:
    """A warning that scores of only `images` images are biased."""
    return (
        f"{images:,} images are few: the fewer there are, the larger the Fréchet distance and the Gaussian "
        "discrepancy, even for a perfect model; recall and coverage change too. Compare the distance "
        "with that between halves of the real images, and compare models only at equal numbers."
    )


def score_table(columns: Sequence[tuple[str, Evaluation]]) -> list[str]:
    """Every score, as the lines of a Markdown table.

    Args:
        columns: the heading and the scores of each column.
    """
    cells = [_cells(each) for _, each in columns]
    lines = [f"| | {' | '.join(heading for heading, _ in columns)} |", "|---|" + "---|" * len(columns)]
    return lines + [f"| {row} | {' | '.join(each[row] for each in cells)} |" for row in cells[0]]


def _cells(e: Evaluation) -> dict[str, str]:
    """The cells of one column, by the name of the row."""
    few, more = e.real // 2, e.real - e.real // 2
    halves = _number(e.frechet_of_halves, f"{{:.2f}} ({more:,}, {few:,})")
    of = "" if e.retrieval is None else f" of {e.retrieval.candidates}"
    again = "" if e.drawn_again is None else " ({} x {})".format(*e.drawn_again)
    near = e.memorisation
    trained = "" if near is None else f" ({near.training_images:,})"
    rows = {
        "pictures, against real images": ("", f"{e.pictures:,}, {e.real:,}"),
        "Fréchet distance (less is better)": ("", _number(e.frechet, "{:.2f}")),
        "the same between two halves of the real images (sizes; fewer images give more)": (
            "frechet_of_halves",
            halves,
        ),
        "kernel distance (less is better)": ("", _number(e.kernel, "{:.4f}")),
        "Gaussian discrepancy (less is better)": ("", _number(e.mmd, "{:.3f}")),
        "precision": ("precision", _number(e.precision, "{:.3f}")),
        "recall": ("recall", _number(e.recall, "{:.3f}")),
        "density": ("density", _number(e.density, "{:.3f}")),
        "coverage": ("coverage", _number(e.coverage, "{:.3f}")),
        "top-1 retrieval (captions shuffled)": ("retrieval", _both(e, "top1", "{:.1%}", of)),
        "top-5 retrieval (captions shuffled)": ("retrieval", _both(e, "top5", "{:.1%}", of)),
        "mean reciprocal rank (captions shuffled)": ("retrieval", _both(e, "mrr", "{:.3f}")),
        "diversity within a prompt (prompts x pictures); 1 is like real images of different captions": (
            "diversity",
            _number(e.diversity, f"{{:.3f}}{again}"),
        ),
        "distance to the nearest training image, relative to held-out images (training images)": (
            "memorisation",
            _number(_part(near, "ratio"), f"{{:.3f}}{trained}"),
        ),
        "pictures nearer to a training image than 99% of held-out images": (
            "memorisation",
            _number(_part(near, "near"), "{:.1%}"),
        ),
    }
    return {row: cell or _why_blank(e.not_measured.get(name)) for row, (name, cell) in rows.items()}


def _why_blank(reason: str | None) -> str:
    return "not measured" + (f": {reason.replace('|', '/')}" if reason else "")


def _both(e: Evaluation, name: str, form: str, of: str = "") -> str:
    right, shuffled = (_number(_part(each, name), form) for each in (e.retrieval, e.shuffled))
    return f"{right}{of} ({shuffled})" if right else ""


def _part(scores: Retrieval | MemorisationScores | None, name: str) -> float | None:
    return None if scores is None else float(getattr(scores, name))


def _number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else form.format(value)
