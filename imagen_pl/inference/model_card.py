"""The model card of a published model: training data, recipe, scores and limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from imagen_pl.data.sources.declaration import declaration_of
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import size_text
from imagen_pl.metrics.distances import FEW
from imagen_pl.metrics.evaluation import Evaluation
from imagen_pl.metrics.extractors import name_in_scores
from imagen_pl.metrics.report import bias_of_few, score_table
from imagen_pl.types import width_of

_USE = """```python
from imagen_pl import load

model = load("{name}")
pictures = model.sample(["{prompt}"], seed=7)
```"""
_FINE_TUNE = """## Fine-tuning

The discriminator is included, for fine-tuning: `discriminator.safetensors`, {size:.1f} MB. A new training
with `--model.generator.init_from {name}` starts from both networks, if its own have the same sizes
(`config.json`)."""
_LIMITS = (
    "The model generates what its training images show and little else: unseen subjects come out worse, and "
    "long sentences, counts and negations are mostly not understood. It can reproduce biases of its training "
    "data. Check the images before you use them."
)
_LIMITS_OF_IMAGES = (
    "The model knows pictures like those of its training and little else: what a picture does not show, or "
    "what is new to it, it guesses. Check the results before you use them."
)
# Scores of an evaluation as the hub names them: the field, its type and name, and both with Inception.
_METRICS = (
    ("frechet", ("frechet_distance", "Fréchet distance"), ("fid", "FID")),
    ("kernel", ("kernel_distance", "kernel distance"), ("kid", "KID")),
    ("mmd", ("gaussian_discrepancy", "Gaussian discrepancy"), None),
    ("precision", ("precision", "precision"), None),
    ("recall", ("recall", "recall"), None),
    ("density", ("density", "density"), None),
    ("coverage", ("coverage", "coverage"), None),
    ("diversity", ("diversity", "diversity within a prompt"), None),
)


def model_card(
    name: str,
    description: Mapping[str, Any],
    *,
    licence: str = "mit",
    evaluations: Sequence[Mapping[str, Any]] = (),
    samples: str | None = None,
    further: Mapping[str, str] | None = None,
    discriminator_mb: float | None = None,
    prompt: str = "red heart, fluent style",
    command: str | None = None,
) -> str:
    """The model card as Markdown, with the metadata that the hub reads.

    Args:
        name: name of the model, as given to `load`.
        description: content of the release's config.json.
        licence: licence of the weights, as the hub spells it.
        evaluations: contents of evaluation.json by `imagen-pl evaluate`, one for each split; without any, the
            card says that nothing was measured.
        samples: an image file beside the card.
        further: further sections by their titles, before the section on limits.
        discriminator_mb: size of discriminator.safetensors, MB; None if the release has no discriminator.
        prompt: caption of the example.
        command: of a model that changes given pictures, the command that does so; None for one that draws
            captions.
    """
    task = "text-to-image" if command is None else "image-to-image"
    head: dict[str, Any] = {
        "license": licence,
        "library_name": "imagen_pl",
        "pipeline_tag": task,
        "tags": ["gan", task, "pytorch-lightning"],
    }
    if evaluations:
        head["model-index"] = [
            {"name": name.rpartition("/")[2], "results": _results(description, task, evaluations)}
        ]
    kind = description["generator"]["class_path"].rpartition(".")[2]
    what = (
        f"A text-to-image GAN of {_size(description)}"
        if command is None
        else f"{kind}, which changes pictures"
    )
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {name.rpartition('/')[2]}",
        f"{what}, trained with imagen_pl {description['imagen_pl']}.",
        *([f"![Samples]({samples})"] if samples else []),
        _USE.format(name=name, prompt=prompt) if command is None else f"```\n{command}\n```",
        f"## Data\n\n{_data(description)}",
        f"## Recipe\n\n{_recipe(description)}",
        *([_FINE_TUNE.format(name=name, size=discriminator_mb)] if discriminator_mb is not None else []),
        f"## Scores\n\n{_scores(evaluations)}",
        *(f"## {title}\n\n{text}" for title, text in (further or {}).items()),
        f"## Limits\n\n{_LIMITS if command is None else _LIMITS_OF_IMAGES}",
    ]
    return "\n\n".join(parts) + "\n"


def read_evaluation(file: Path) -> dict[str, Any]:
    """The content of an evaluation.json.

    Raises:
        UserError: the file was not written by `imagen-pl evaluate` of this version.
    """
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _scores([found])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"--evaluation {file} is not an evaluation.json of this version's `imagen-pl evaluate` "
            f"({type(error).__name__}): evaluate again"
        ) from error
    return found


def _results(
    description: Mapping[str, Any], task: str, evaluations: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The scores as the hub reads them from a card: one entry for each split."""
    source = _source(description).removesuffix("Source") or "Captioned"
    results = []
    for each in evaluations:
        metrics = []
        for scores in each["scores"]:
            network = scores["extractor"]
            for field, usual, of_inception in _METRICS:
                if scores.get(field) is not None:
                    kind, called = of_inception if of_inception and network == "inception_v3" else usual
                    metrics.append((kind, f"{called}, {network} features", scores[field]))
            for k in ("top1", "top5"):
                if scores.get("retrieval") is not None:
                    found = scores["retrieval"]
                    called = f"{k.replace('top', 'top-')} retrieval among {found['candidates']}"
                    metrics.append((f"retrieval_{k}", f"{called}, {network} features", found[k]))
        if "clip_score" in each:
            metrics.append(("clip_score", f"CLIP score, {name_in_scores(each['clip'])}", each["clip_score"]))
        results.append(
            {
                "task": {"type": task},
                "dataset": {"name": f"{source} images", "type": "image-text", "split": each["split"]},
                "metrics": [
                    {"type": kind, "name": called, "value": round(float(value), 4)}
                    for kind, called, value in metrics
                ],
            }
        )
    return results


def _source(description: Mapping[str, Any]) -> str:
    """The class of the data source, without its module; "" if it is unknown."""
    return str((description.get("data") or {}).get("class_path", "")).rpartition(".")[2]


def _size(description: Mapping[str, Any]) -> str:
    arguments = description["generator"].get("init_args") or {}
    height = description["resolution"]
    size = size_text((width_of(height, arguments.get("aspect_ratio", 1.0)), height))
    return f"{size} with transparency" if description.get("alpha") else size


def _data(description: Mapping[str, Any]) -> str:
    source = description.get("data") or {}
    licence = declaration_of(source).licence
    if licence is not None:
        return licence
    # Without the path, which may be private.
    reader = _source(description) or "another program"
    return f"Captioned images, read by {reader}. Say here which, and under what licence."


def _recipe(description: Mapping[str, Any]) -> str:
    rows = {
        "generator": _short(description["generator"]),
        "text encoder": _short(description["text_encoder"]),
        "images seen in the last training": f"{description['images_seen']:,}",
        "frozen networks used in training": ", ".join(description.get("teacher_networks") or []) or "none",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _short(network: Mapping[str, Any]) -> str:
    arguments = {k: v for k, v in (network.get("init_args") or {}).items() if v is not None and k != "name"}
    settings = ", ".join(f"{k} {v}" for k, v in arguments.items() if isinstance(v, (int, float, str, list)))
    return f"{network['class_path'].rpartition('.')[2]}{' (' + settings + ')' if settings else ''}"


def _scores(evaluations: Sequence[Mapping[str, Any]]) -> str:
    if not evaluations:
        return "None were measured."
    columns = [
        (f"{each['split']}, {scores['extractor']}", Evaluation.from_json(scores))
        for each in evaluations
        for scores in each["scores"]
    ]
    compared = "; ".join(
        f"{each['pictures']:,} samples, one per caption, against {each['real_images']:,} real images of the "
        f"split {each['split']}, {each['resolution']} px, seed {each['seed']}"
        for each in evaluations
    )
    lines = [f"By `imagen-pl evaluate`: {compared}.", "", *score_table(columns), ""]
    lines += [
        f"CLIP score, split {each['split']}: {each['clip_score']:.2f}, by {name_in_scores(each['clip'])}.\n"
        for each in evaluations
        if "clip_score" in each
    ]
    fewest = min(min(each["pictures"], each["real_images"]) for each in evaluations)
    if fewest < FEW:
        lines.append(bias_of_few(fewest))
    if "inception_v3" not in [scores["extractor"] for each in evaluations for scores in each["scores"]]:
        lines.append("None of these is FID, which uses Inception features.")
    return "\n".join(lines).strip()
