"""`imagen-pl grow-report`: an HTML report of a run, with its curves and its samples over time."""

from __future__ import annotations

import argparse
import base64
import csv
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from imagen_pl.cli.counting import counted
from imagen_pl.cli.options import verb_parser
from imagen_pl.errors import UserError
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.storage.run_folder import RunFolder

# Title, prefixes of the curves' names, whether the axis is logarithmic.
_PLOTS = (
    ("Losses", ("train/d_loss", "train/g_loss"), False),
    ("Margin: real above generated", ("train/d_margin",), False),
    ("Norms of the gradients", ("train/d_grad_norm", "train/g_grad_norm"), True),
    ("LossTerms", ("train/d_", "train/g_"), True),
    ("Validation", ("val/fd_", "val/fid", "val/cmmd", "val/mmd"), False),
    ("Validation: shares", ("val/precision", "val/recall", "val/coverage", "val/top1", "val/top5"), False),
    ("Images a second", ("train/images_per_second",), False),
    ("Peak memory, GiB", ("train/peak_memory_gb",), False),
)
_STRIP = 6  # sample grids
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
img, svg { max-width: 100%; height: auto; }
figure { margin: 1.5rem 0; }
figcaption { color: #555; font-size: 14px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1rem; }
table { border-collapse: collapse; } td { padding: 2px 1rem 2px 0; vertical-align: top; }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>{style}</style>
</head>
<body>
<h1>{name}</h1>
<table>{settings}</table>
<h2>Samples as they grew</h2>
<p>{grown}</p>
{samples}
<h2>Curves</h2>
<p>Over images seen; broken lines: a new resolution.</p>
<div class="plots">{plots}</div>
</body>
</html>
"""

Rows = list[dict[str, float]]


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "grow-report",
        description="Write an HTML report of a run: loss curves, and its samples over time.",
    )
    parser.add_argument("run", help="the run's folder, for example runs/quickstart")
    parser.add_argument(
        "--out", metavar="FILE", help="an .html file (default: report.html in the run's folder)"
    )
    return parser


@dataclass(frozen=True)
class StageStart:
    """A growth stage of the run: number of images at its start, and its resolution in px."""

    since: float
    resolution: int


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return grow_report(make_parser().parse_args(words))


def grow_report(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: the folder is not a run, it has no numbers yet, or matplotlib is missing.
    """
    run = RunFolder(Path(arguments.run))
    rows = read_rows(run.path / "metrics.csv")
    out = Path(arguments.out) if arguments.out else run.path / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out} must be an .html file")
    page = html_report(run.name, rows, sorted((run.path / "samples").glob("*.png")), _settings(run.path))
    with atomic_write(out) as file:
        file.write(page.encode())
    print(f"{out}: {counted(len(rows), 'row')} of numbers, {rows[-1]['images_seen']:,.0f} images seen")
    return 0


def read_rows(file: Path) -> Rows:
    """The numbers in metrics.csv, without empty cells. Raises UserError if there are none."""
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = [
                {name: float(cell) for name, cell in row.items() if name and cell}
                for row in csv.DictReader(opened)
            ]
    except FileNotFoundError:
        raise UserError(f"{file.parent} is no run: it has no {file.name}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    rows = [row for row in rows if "images_seen" in row]
    if not rows:
        raise UserError(f"{file} holds no numbers yet: train a little longer")
    return rows


def stages_of(rows: Rows) -> list[StageStart]:
    """The start of each resolution."""
    found: list[StageStart] = []
    for row in rows:
        resolution = int(row.get("growth/resolution", 0))
        if resolution and (not found or found[-1].resolution != resolution):
            found.append(StageStart(row["images_seen"], resolution))
    return found


def html_report(name: str, rows: Rows, samples: Sequence[Path], settings: dict[str, str]) -> str:
    """A self-contained page with images and plots embedded.

    Args:
        name: of the run.
        rows: its numbers.
        samples: its sample grids, oldest first.
        settings: name and value of each line at the top.
    """
    stages = stages_of(rows)
    said = "".join(
        f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in settings.items()
    )
    plots = "".join(
        f"<figure>{svg}</figure>" for plot in _PLOTS if (svg := _plot(rows, stages, *plot)) is not None
    )
    return _PAGE.format(
        name=html.escape(name),
        style=_STYLE,
        settings=said,
        grown=" → ".join(f"{stage.resolution} px" for stage in stages),
        samples="".join(map(_figure, _spread(samples))),
        plots=plots,
    )


def _settings(run: Path) -> dict[str, str]:
    """Time, command and commit of the last start, from run.json; empty if it is missing or damaged."""
    try:
        start: dict[str, Any] = json.loads((run / "run.json").read_text())["starts"][-1]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    git = start.get("git") or {}
    kept = {"started": start.get("time"), "command": start.get("command"), "commit": git.get("commit")}
    return {name: str(value) for name, value in kept.items() if value}


def _spread(samples: Sequence[Path]) -> list[Path]:
    """At most _STRIP samples, evenly spaced, with the first and the last."""
    if len(samples) <= _STRIP:
        return list(samples)
    return [samples[round(k * (len(samples) - 1) / (_STRIP - 1))] for k in range(_STRIP)]


def _figure(sample: Path) -> str:
    made = io.BytesIO()
    with Image.open(sample) as picture:
        picture.convert("RGB").save(made, "WEBP", quality=90)
    data = base64.b64encode(made.getvalue()).decode()
    return (
        f'<figure><img alt="samples" src="data:image/webp;base64,{data}">'
        f"<figcaption>{html.escape(sample.stem)}</figcaption></figure>"
    )


def _plot(
    rows: Rows, stages: list[StageStart], title: str, starts: tuple[str, ...], logarithmic: bool
) -> str | None:
    """The plot as SVG; None if the run has no such curve."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError("the report's plots need a package: pip install matplotlib") from None

    names = sorted({name for row in rows for name in row if name.startswith(starts)})
    if title == "LossTerms":  # the terms that no other plot shows
        shown = [start for other, begun, _ in _PLOTS if other != title for start in begun]
        names = [n for n in names if not n.startswith(tuple(shown)) and not n.endswith("_lr")]
    if not names:
        return None
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name in names:
        points = [(row["images_seen"], row[name]) for row in rows if name in row]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker="." if len(points) < 30 else "", linewidth=1, label=name)
    for stage in stages[1:]:
        axes.axvline(stage.since, color="#999", linestyle="--", linewidth=0.8)
    if logarithmic and all(row[name] > 0 for row in rows for name in names if name in row):
        axes.set_yscale("log")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("images seen", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=6, ncols=2 if len(names) > 6 else 1)
    made = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(made, format="svg", metadata={"Date": None})
    return made.getvalue()[made.getvalue().index("<svg") :]
