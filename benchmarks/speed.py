"""How fast a recipe trains: two commits side by side; and what it learns from a number of images.

    python -m benchmarks.speed race --against af54387
    python -m benchmarks.speed images --images 12096 --every 4032 --seeds 0 1 2

`race` trains a recipe in this working tree and in a checkout of another commit, each in a process of its own.
They take turns: a block of steps here, a block there, so that other work on the machine slows both down.
Captions are encoded and caches are filled before the first block, and a first block warms up uncounted.
Without validation, samples and checkpoints. It prints the median images/s of the blocks of each, the ratio
of the two, with its range over the pairs of blocks, and the machine's instructions. The number of steps in a
block should be a multiple of 16, since the quickstart computes its penalties every 16th step. Two recipes of
one commit are compared with `--against HEAD --against-config ... --against-set ...`.

`images` trains a recipe for a number of images with each seed, and validates it every so many. It prints the
mean distance over the seeds after each number of images, and the range, and writes them as JSON. A seed sets
the initial weights, the latents, the order of the images, and which images are held out for the distance.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.ablation import read_metrics
from benchmarks.machine import command_line, describe_machine, machine
from benchmarks.speed_race import REPOSITORY, race, settings
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.errors import UserError
from imagen_pl.storage.atomic_files import atomic_write

QUICKSTART = "configs/experiment/quickstart.yaml"


# ------------------------------------------------------------------ images


def images(options: argparse.Namespace) -> dict[str, Any]:
    name = options.name or Path(options.config[-1]).stem
    environment = {} if options.threads is None else {"OMP_NUM_THREADS": str(options.threads)}
    curves = {}
    for seed in options.seeds:
        words = fit_words(options, f"{name}-{seed}", seed)
        print(f"seed {seed}: imagen-pl {' '.join(words)}", flush=True)
        command = [sys.executable, "-m", "imagen_pl.cli.main", *words]
        subprocess.run(command, cwd=REPOSITORY, env=os.environ | environment, check=True)
        rows = read_metrics(options.runs_dir / f"{name}-{seed}" / "metrics.csv")
        curves[seed] = {int(row["images_seen"]): row[options.metric] for row in rows if options.metric in row}
    print(f"\n{distance_table(curves, options.metric)}\n\n{describe_machine()}\n`{command_line()}`")
    options.out = options.out or options.runs_dir / f"{name}.json"
    return {
        "precision": options.precision,
        "metric": options.metric,
        "seeds": options.seeds,
        "distances": curves,
    }


def fit_words(options: argparse.Namespace, name: str, seed: int) -> list[str]:
    """The words after `imagen-pl` that train with one seed; each epoch ends with validation."""
    return [
        *("fit", *(f"--config={file}" for file in options.config)),
        *(f"--name={name}", f"--runs_dir={options.runs_dir.absolute()}", "--existing=move"),
        *(f"--max_images={options.images}", f"--data.epoch_kimg={options.every / 1000}"),
        *(f"--{key}={seed}" for key in ("seed_everything", "model.seed", "data.seed")),
        *(f"--trainer.precision={options.precision}", *settings(options.set)),
    ]


def distance_table(curves: dict[int, dict[int, float]], metric: str) -> str:
    """The mean of a metric over the seeds, and its range, after each number of images.

    Args:
        curves: by seed and number of images.
        metric: its name, for the head.
    """
    rows = [f"| images | {metric} | seeds | from | to |", "|---|---|---|---|---|"]
    for number in sorted({number for curve in curves.values() for number in curve}):
        values = [curve[number] for curve in curves.values() if number in curve]
        mean, low, high = statistics.fmean(values), min(values), max(values)
        rows.append(f"| {number:,} | {mean:.1f} | {len(values)} | {low:.1f} | {high:.1f} |")
    return "\n".join(rows)


# ------------------------------------------------------------------ the command


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = made.add_subparsers(dest="verb", required=True)
    racing = verbs.add_parser("race", help="images/s of this working tree and of another commit")
    racing.add_argument("--against", required=True, metavar="COMMIT", help="the other commit")
    racing.add_argument(
        "--against-config",
        nargs="+",
        metavar="FILE",
        help="the recipe there (default: the same path, or else configs/NAME)",
    )
    racing.add_argument(
        "--against-set", nargs="*", metavar="KEY=VALUE", help="settings there (default: as --set)"
    )
    racing.add_argument("--blocks", type=int, default=6, help="blocks of each (default: %(default)s)")
    racing.add_argument("--steps", type=int, default=48, help="steps in a block (default: %(default)s)")
    racing.add_argument(
        "--warm-up", type=int, default=16, help="steps before the first block (default: %(default)s)"
    )
    racing.set_defaults(run=race)
    counting = verbs.add_parser("images", help="distance after a number of images, with several seeds")
    counting.add_argument("--images", type=int, required=True, help="how many to train on")
    counting.add_argument("--every", type=int, required=True, help="images between two validations")
    counting.add_argument("--seeds", nargs="+", type=int, default=[0], help="(default: 0)")
    counting.add_argument("--metric", default="val/fd_efficientnet_lite1", help="(default: %(default)s)")
    counting.add_argument("--name", help="of its runs and its JSON file (default: the last configuration's)")
    counting.add_argument("--runs_dir", type=Path, default=Path("runs/speed"), help="(default: %(default)s)")
    counting.set_defaults(run=images)
    for verb in (racing, counting):
        verb.add_argument("--precision", default="32-true", help="trainer.precision (default: %(default)s)")
        verb.add_argument("--threads", type=int, metavar="N", help="of torch (default: its own choice)")
        verb.add_argument(
            "--config",
            nargs="+",
            default=[QUICKSTART],
            metavar="FILE",
            help="the recipe, and overlays (default: the quickstart)",
        )
        verb.add_argument(
            "--set",
            nargs="+",
            default=[],
            metavar="KEY=VALUE",
            help="settings, as `imagen-pl fit` takes them after --",
        )
        verb.add_argument("--out", type=Path, help="JSON file to write (images: default RUNS_DIR/NAME.json)")
    return made


def main() -> None:
    made = parser()
    # As after Ctrl-C: the other commit's work tree is removed, and the trainings end.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    options = made.parse_args()
    try:
        result = options.run(options)
    except UserError as error:
        made.error(str(error))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"command": command_line(), "git": git_state(), "machine": machine(), **result}
        with atomic_write(options.out) as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
