"""Train a grid of recipes and tabulate their scores: by default, each of the pillars on the shipped emoji.

    python -m benchmarks.ablation                        # what is missing, then the table in RESULTS.md
    python -m benchmarks.ablation --only "all off" growing --seeds 0
    python -m benchmarks.ablation --table                # the table alone, from the JSON files
    python -m benchmarks.ablation --grid benchmarks/grids/growing_grid.yaml
    python -m benchmarks.ablation --grid benchmarks/grids/icons_control_grid.yaml

Every run trains for the same time, one after the other. Emoji are scored by benchmarks/quality.py after each
run; icons by benchmarks/icons.py, all runs of the grid after the last training, since it reads thousands of
real icons. A run whose JSON file exists in benchmarks/results/, under the grid's name, is not trained again,
so an interrupted grid can be continued; the file holds its scores, its speed and its curves. A run that
diverged is kept as such, with its curves. notebooks/ablations.ipynb plots the results of the pillars.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from imagen_pl.callbacks.run_record import git_state
from imagen_pl.storage.atomic_files import atomic_write

REPOSITORY = Path(__file__).parents[1]
GRID = REPOSITORY / "benchmarks/grids/pillars_grid.yaml"
RESULTS = REPOSITORY / "benchmarks/results"
REPORT = REPOSITORY / "benchmarks/RESULTS.md"
# Of the numbers in metrics.csv: what explains why a pillar helps or not.
CURVES = (
    "loss",
    "grad_norm",
    "margin",
    "caption_ce",
    "rotation",
    "reconstruction",
    "colour",
    "instance",
    "val/",
)
POINTS = 60


@dataclass(frozen=True)
class Grid:
    """What is to be trained; see the comments in the YAML file."""

    name: str
    minutes: float
    seeds: list[int]
    base: list[str]
    extractor: str
    runs: dict[str, list[str]]
    icons: str | None = None  # the folder of icons that scores the runs; None for emoji

    @property
    def results(self) -> Path:
        """Folder of its runs' JSON files."""
        return RESULTS / self.name

    @property
    def marks(self) -> tuple[str, str]:
        """Between which its table stands in the report."""
        return f"<!-- {self.name}: begin -->", f"<!-- {self.name}: end -->"


@dataclass(frozen=True)
class Run:
    """One training."""

    name: str
    seed: int

    @property
    def slug(self) -> str:
        return f"{self.name.replace(' ', '-')}-{self.seed}"

    def result(self, grid: Grid) -> Path:
        return grid.results / f"{self.slug}.json"


def read_grid(file: Path) -> Grid:
    return Grid(**yaml.safe_load(file.read_text(encoding="utf-8")))


# ------------------------------------------------------------------ one run


def fit_command(grid: Grid, run: Run, runs_dir: Path) -> list[str]:
    """Words that train it; all of its randomness hangs on the seed."""
    seconds = round(60 * grid.minutes)
    clock = f"00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    words = ["-m", "imagen_pl.cli.main", "fit"]
    for file in [*grid.base, *grid.runs[run.name]]:
        words += ["--config", file]
    words += ["--name", run.slug, "--runs_dir", str(runs_dir), "--existing", "move"]
    words += ["--trainer.max_time", clock]
    for name in ("seed_everything", "model.seed", "data.seed"):
        words += [f"--{name}", str(run.seed)]
    return words


def train_and_score(grid: Grid, run: Run, runs_dir: Path) -> dict[str, Any]:
    """Train, score, and gather what is kept of it."""
    words = fit_command(grid, run, runs_dir)
    start = time.monotonic()
    trained = subprocess.run([sys.executable, *words], cwd=REPOSITORY, check=False)
    seconds = time.monotonic() - start
    if trained.returncode not in (0, 1):  # 1: it broke off, as when a loss is not finite
        raise SystemExit(f"{run.slug}: imagen-pl fit ended with {trained.returncode}")
    rows = read_metrics(runs_dir / run.slug / "metrics.csv")
    result = {
        "name": run.name,
        "seed": run.seed,
        "command": "imagen-pl " + " ".join(words[2:]),
        "git": git_state(),
        "minutes": grid.minutes,
        "seconds_with_start_and_validation": round(seconds, 1),
        "diverged": trained.returncode == 1,
        "images_seen": int(rows[-1]["images_seen"]),
        "images_per_second": images_per_second(rows),
        "curves": curves(rows),
    }
    if trained.returncode == 0 and grid.icons is None:
        result |= score("benchmarks.quality", grid.extractor, [runs_dir / run.slug])[0]
    return result


def score(
    benchmark: str, extractor: str, folders: list[Path], more: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Score trained runs together; by run, in order, its scores and how they were made."""
    written = folders[0].with_name("scores.json")
    words = ["-m", benchmark, *map(str, folders), "--extractor", extractor, "--out", str(written), *more]
    subprocess.run([sys.executable, *words], cwd=REPOSITORY, check=True)
    report = json.loads(written.read_text())
    about = {name: report[name] for name in ("machine", "torch", "extractor") if name in report}
    return [{**about, "score": found} for found in report["scores"][-len(folders) :]]


def score_icons(grid: Grid, runs: list[Run], runs_dir: Path) -> None:
    """Score the runs that were trained and have no score yet."""
    results = {run: json.loads(run.result(grid).read_text()) for run in runs}
    unscored = [run for run, found in results.items() if not found["diverged"] and "score" not in found]
    if grid.icons is None or not unscored:
        return
    folders = [runs_dir / run.slug for run in unscored]
    for run, scored in zip(
        unscored, score("benchmarks.icons", grid.extractor, folders, ["--icons", grid.icons]), strict=True
    ):
        write_result(grid, run, results[run] | scored)


def write_result(grid: Grid, run: Run, result: dict[str, Any]) -> None:
    with atomic_write(run.result(grid)) as file:
        file.write((json.dumps(result, indent=1) + "\n").encode())


def read_metrics(file: Path) -> list[dict[str, float]]:
    with file.open(newline="") as opened:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(opened)]


def images_per_second(rows: list[dict[str, float]]) -> float:
    """Over the whole training: images over the time that they took."""
    name = "train/images_per_second"
    timed = [(row["images_seen"], row[name]) for row in rows if row.get(name)]
    pairs = zip([(rows[0]["images_seen"], 0.0), *timed], timed, strict=False)
    spans = [(now[0] - before[0], now[1]) for before, now in pairs]
    return sum(images for images, _ in spans) / sum(images / speed for images, speed in spans)


def curves(rows: list[dict[str, float]]) -> dict[str, list[list[float]]]:
    """By name: at most POINTS pairs of images seen and value, each the mean of its stretch."""
    names = sorted({name for row in rows for name in row if any(part in name for part in CURVES)})
    found = {}
    for name in names:
        pairs = [(row["images_seen"], row[name]) for row in rows if name in row]
        size = max(1, math.ceil(len(pairs) / POINTS))
        parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
        found[name] = [[part[-1][0], float(f"{statistics.fmean(v for _, v in part):.5g}")] for part in parts]
    return found


# ------------------------------------------------------------------ the table

Pick = Callable[[dict[str, Any]], float]
COLUMNS: dict[str, tuple[Pick, str]] = {
    "images/s": (lambda r: r["images_per_second"], "{:.0f}"),
    "images seen": (lambda r: r["images_seen"], "{:,.0f}"),
    "FD": (lambda r: r["score"]["fd"], "{:.1f}"),
    "KD": (lambda r: r["score"]["kd"], "{:.4f}"),
    "top-1": (lambda r: 100 * r["score"]["retrieval"]["top1"], "{:.1f}%"),
    "top-5": (lambda r: 100 * r["score"]["retrieval"]["top5"], "{:.1f}%"),
    "test top-1": (lambda r: 100 * r["score"]["test_retrieval"]["top1"], "{:.1f}%"),
    "test top-5": (lambda r: 100 * r["score"]["test_retrieval"]["top5"], "{:.1f}%"),
    "shuffled top-5": (lambda r: 100 * r["score"]["shuffled"]["top5"], "{:.1f}%"),
}
# Of benchmarks/icons.py. Learnt names, new pairs, new subjects: top-5 retrieval among 100 names by
# benchmarks/icon_judge.py.
ICON_COLUMNS: dict[str, tuple[Pick, str]] = {
    "images/s": COLUMNS["images/s"],
    "images seen": COLUMNS["images seen"],
    "FD": (lambda r: r["score"]["frechet"], "{:.1f}"),
    "diversity": (lambda r: r["score"]["diversity"]["diversity"], "{:.2f}"),
    "latent share": (lambda r: r["score"]["diversity"]["latent_share"], "{:.2f}"),
    "learnt names": (lambda r: 100 * r["score"]["named"]["train"][1], "{:.0f}%"),
    "new pairs": (lambda r: 100 * r["score"]["named"]["pairs"][1], "{:.0f}%"),
    "new subjects": (lambda r: 100 * r["score"]["named"]["subjects"][1], "{:.0f}%"),
    "one-word pairs": (lambda r: 100 * over_pairs(r["score"]["pair_accuracy"]), "{:.1f}%"),
    "set": (lambda r: 100 * r["score"]["set"][0], "{:.0f}%"),
    "kind": (lambda r: 100 * r["score"]["kind"][0], "{:.0f}%"),
}


def over_pairs(by_group: dict[str, tuple[float, int]]) -> float:
    """The share of pictures, of learnt and held-out pairs, that fit their own name better. Chance: 0.5."""
    return sum(share * number for share, number in by_group.values()) / sum(n for _, n in by_group.values())


def table(grid: Grid, results: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds of each run, in the grid's order."""
    columns = COLUMNS if grid.icons is None else ICON_COLUMNS
    head = ["run", "seeds", *columns]
    lines = [" | ".join(["", *head, ""]).strip(), "|" + "---|" * len(head)]
    for name in grid.runs:
        found = [r for r in results if r["name"] == name]
        good = [r for r in found if "score" in r]
        if not found:
            continue
        diverged = sum(bool(r.get("diverged", "score" not in r)) for r in found)
        if not good and not diverged:
            continue  # not scored yet
        seeds = f"{len(good)}, {diverged} diverged" if diverged else str(len(good))
        cells = [name, seeds]
        for pick, form in columns.values():
            values = [pick(r) for r in good]
            cell = form.format(statistics.fmean(values)) if values else ""
            if len(values) > 1:
                cell += f" ± {form.format(statistics.stdev(values))}"
            cells.append(cell)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_results(grid: Grid) -> list[dict[str, Any]]:
    """What is kept of every run that was made."""
    return [json.loads(file.read_text()) for file in sorted(grid.results.glob("*.json"))]


def write_report(grid: Grid, report: Path) -> None:
    """Put the table between its two marks."""
    results = read_results(grid)
    made = table(grid, results)
    print(made)
    text = report.read_text(encoding="utf-8")
    begin, end = grid.marks
    if begin not in text or end not in text:
        raise SystemExit(f"{report} has no place for the table: add {begin} and {end}")
    before, after = text.split(begin)[0], text.split(end)[1]
    with atomic_write(report) as file:
        file.write(f"{before}{begin}\n{made}\n{end}{after}".encode())


# ------------------------------------------------------------------ the command


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", type=Path, default=GRID, help="the grid (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="these runs of the grid alone")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="these seeds alone")
    parser.add_argument(
        "--runs_dir", type=Path, help="where the runs go (default: runs/ and the grid's name)"
    )
    parser.add_argument("--table", action="store_true", help="train nothing and score nothing")
    parser.add_argument("--score_later", action="store_true", help="icons: train, and do not score yet")
    options = parser.parse_args()
    grid = read_grid(options.grid)
    runs_dir = options.runs_dir or Path("runs") / grid.name
    grid.results.mkdir(parents=True, exist_ok=True)
    unknown = set(options.only or ()) - set(grid.runs)
    if unknown:
        parser.error(f"--only {', '.join(sorted(unknown))}: the grid has {', '.join(grid.runs)}")
    # Seed by seed, so that a grid that is stopped can be compared as far as it came.
    wanted = [Run(name, seed) for seed in options.seeds or grid.seeds for name in options.only or grid.runs]
    missing = [run for run in wanted if not run.result(grid).exists()]
    for number, run in enumerate(missing if not options.table else [], start=1):
        print(f"{number} of {len(missing)}: {run.name}, seed {run.seed}", flush=True)
        write_result(grid, run, train_and_score(grid, run, runs_dir))
    if not (options.table or options.score_later):
        score_icons(grid, wanted, runs_dir)
    write_report(grid, REPORT)


if __name__ == "__main__":
    main()
