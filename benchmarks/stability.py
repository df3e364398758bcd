"""How often a recipe trains well: five learning rates, a quarter to four times its own, by three seeds.

    python -m benchmarks.stability configs/experiment/icons32.yaml --max_images 10000
    python -m benchmarks.stability configs/experiment/icons32.yaml --max_images 10000 --table

A run is good if it ends without an error, its Fréchet distance on validation is at most 1.3 times the
smallest of all runs, and its images have not collapsed: `train/latent_share`, the share of the images'
variance that lies within captions, is at least 0.05. The factor multiplies the learning rates of both
optimizers, which the recipe must name. Options that this command does not know go to `imagen-pl fit`.

Each run's distance, share and curves are written as JSON to --out. Runs that are there are not trained again,
so an interrupted benchmark can be continued. To use two processes, give each its own --seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.ablation import REPOSITORY, RESULTS, curves, images_per_second, read_metrics
from benchmarks.machine import machine
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.storage.atomic_files import atomic_write

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
SEEDS = (0, 1, 2)
MOST = 1.3  # times the best distance
LEAST_SHARE = 0.05
OPTIMIZERS = ("generator_optimizer", "discriminator_optimizer")
DISTANCE, SHARE = "val/fd_efficientnet_lite1", "train/latent_share"


@dataclass(frozen=True)
class Outcome:
    """How one training ended.

    factor: on both learning rates.
    distance: the last Fréchet distance on validation; None if the run broke off before one.
    latent_share: the last one; None if none was measured.
    stopped: whether it ended with an error, as where a loss is not finite.
    about: command, commit, machine, speed, curves.
    """

    factor: float
    seed: int
    distance: float | None
    latent_share: float | None
    stopped: bool
    about: dict[str, Any] = field(default_factory=dict)

    def is_good(self, best: float) -> bool:
        """Whether it ended near the best distance, without an error or collapse."""
        if self.stopped or self.distance is None or self.latent_share is None:
            return False
        return self.distance <= MOST * best and self.latent_share >= LEAST_SHARE


def learning_rates(recipes: Sequence[Path]) -> dict[str, float]:
    """The learning rate of each optimizer; later recipes win."""
    found: dict[str, float] = {}
    for file in recipes:
        model = yaml.safe_load(file.read_text(encoding="utf-8")).get("model", {})
        for name in OPTIMIZERS:
            rate = model.get(name, {}).get("init_args", {}).get("lr")
            if rate is not None:
                found[name] = float(rate)
    if missing := [name for name in OPTIMIZERS if name not in found]:
        raise SystemExit(f"the recipe gives no model.{missing[0]}.init_args.lr to multiply: add it")
    return found


def fit_words(
    recipes: Sequence[Path], images: int, runs_dir: Path, more: Sequence[str], factor: float, seed: int
) -> list[str]:
    """The words after `imagen-pl` that train one run."""
    words = ["fit"]
    for file in recipes:
        words += ["--config", str(file)]
    words += ["--name", name_of(factor, seed), "--runs_dir", str(runs_dir), "--existing", "move"]
    words += ["--max_images", str(images), *more]
    for optimizer, rate in learning_rates(recipes).items():
        words.append(f"--model.{optimizer}.init_args.lr={rate * factor:g}")
    return words + [f"--{name}={seed}" for name in ("seed_everything", "model.seed", "data.seed")]


def name_of(factor: float, seed: int) -> str:
    return f"lr-{factor:g}-seed-{seed}"


def last(rows: Sequence[dict[str, float]], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return values[-1] if values else None


def train(words: Sequence[str], folder: Path, factor: float, seed: int) -> Outcome:
    """Run one training, and read how it ended."""
    command = [sys.executable, "-m", "imagen_pl.cli.main", *words]
    done = subprocess.run(command, cwd=REPOSITORY, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{folder.name}: imagen-pl fit ended with {done.returncode}")
    rows = read_metrics(folder / "metrics.csv")
    about = {
        "command": "imagen-pl " + " ".join(words),
        "git": git_state(),
        "machine": machine(),
        "images_seen": int(rows[-1]["images_seen"]),
        "images_per_second": images_per_second(rows),
        "curves": curves(rows),
    }
    return Outcome(factor, seed, last(rows, DISTANCE), last(rows, SHARE), done.returncode == 1, about)


def table(outcomes: Sequence[Outcome]) -> str:
    """One row a factor: distance (latent share) of each seed, bold if good; and the number of good runs."""
    best = min((o.distance for o in outcomes if o.distance is not None), default=float("inf"))
    seeds = sorted({o.seed for o in outcomes})
    lines = [
        "| learning rates | " + " | ".join(f"seed {seed}" for seed in seeds) + " | good |",
        "|" + "---|" * (len(seeds) + 2),
    ]
    for factor in sorted({o.factor for o in outcomes}):
        row = {o.seed: o for o in outcomes if o.factor == factor}
        cells = [cell(row[seed], best) if seed in row else "" for seed in seeds]
        of_factor = sum(o.is_good(best) for o in row.values())
        lines.append(f"| x {factor:g} | " + " | ".join(cells) + f" | {of_factor} of {len(row)} |")
    number = sum(o.is_good(best) for o in outcomes)
    good = f"{number} of {len(outcomes)} runs ({number / len(outcomes):.0%})"
    lines.append(f"\nCells: Fréchet distance (latent share), bold if good: {good}.")
    return "\n".join(lines)


def cell(outcome: Outcome, best: float) -> str:
    """Distance and latent share, in bold if the run is good."""
    if outcome.distance is None or outcome.latent_share is None:
        return "stopped" if outcome.stopped else "not measured"
    text = f"{outcome.distance:.1f} ({outcome.latent_share:.2f})"
    if outcome.stopped:
        return f"{text}, stopped"
    return f"**{text}**" if outcome.is_good(best) else text


def read(folder: Path) -> list[Outcome]:
    return [Outcome(**json.loads(file.read_text())) for file in sorted(folder.glob("*.json"))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", type=Path, help="the recipe, and overlays if there are any")
    parser.add_argument("--max_images", type=int, required=True, help="images that each run trains on")
    parser.add_argument("--factors", nargs="+", type=float, default=FACTORS, help="of the learning rates")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=SEEDS, help="of weights, latents and the order of images"
    )
    parser.add_argument("--out", type=Path, help="folder (default: results/stability/ and the last recipe)")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs/stability"), help="where the runs go")
    parser.add_argument("--table", action="store_true", help="print the table of the runs that are there")
    options, more = parser.parse_known_args()
    name = options.recipes[-1].stem
    out = options.out or RESULTS / "stability" / name
    runs_dir = options.runs_dir / name
    out.mkdir(parents=True, exist_ok=True)
    words = partial(fit_words, options.recipes, options.max_images, runs_dir, more)
    wanted = [(factor, seed) for seed in options.seeds for factor in options.factors]
    missing = [run for run in wanted if not (out / f"{name_of(*run)}.json").exists()]
    for number, (factor, seed) in enumerate([] if options.table else missing, start=1):
        result = out / f"{name_of(factor, seed)}.json"
        if result.exists():  # by another process, meanwhile
            continue
        print(f"{number} of {len(missing)}: learning rates x {factor:g}, seed {seed}", flush=True)
        outcome = train(words(factor, seed), runs_dir / name_of(factor, seed), factor, seed)
        with atomic_write(result) as file:
            file.write((json.dumps(asdict(outcome), indent=1) + "\n").encode())
    if outcomes := read(out):
        print(table(outcomes))


if __name__ == "__main__":
    main()
