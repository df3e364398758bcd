"""How fast a recipe trains: two commits side by side; and what it learns from a number of images.

    python -m benchmarks.speed race --against af54387
    python -m benchmarks.speed images --images 12096 --every 4032 --seeds 0 1 2

`race` trains a recipe in this working tree and in a checkout of another commit, each in a process of its own.
They take turns: a block of steps here, a block there, so that other work on the machine slows both down.
Captions are encoded and caches are filled before the first block, and a first block warms up uncounted.
Without validation, samples and checkpoints. It prints the median images/s of the blocks of each, the ratio
of the two, with its range over the pairs of blocks, and the machine's instructions. The number of steps in a
block should be a multiple of 8, since the recipes compute their penalties every eighth step. Two recipes of
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
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation import read_metrics
from benchmarks.quality import command_line, cpu_model
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.errors import UserError
from imagen_pl.storage.atomic_files import atomic_write

REPOSITORY = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("speed_worker.py")
QUICKSTART = "configs/experiment/quickstart.yaml"
INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
MASKS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# Only training steps are timed.
STEPS_ONLY = (
    *("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0", "--checkpoint.monitor=null"),
    *("--samples.captions=[]", "--samples.every_kimg=1000000", "--data.epoch_kimg=10000"),
    "--trainer.enable_progress_bar=false",
)


# ------------------------------------------------------------------ race


class Worker:
    """A training in a process of its own, which trains a block of steps at each request and then waits.

    Args:
        name: name in messages.
        tree: folder of the source tree that it trains with.
        words: the words after `imagen-pl`.
        log: file for what it prints.
        environment: variables to set.
        script: the file it runs.
    """

    def __init__(
        self,
        name: str,
        tree: Path,
        words: Sequence[str],
        log: Path,
        environment: dict[str, str] | None = None,
        script: Path = WORKER,
    ) -> None:
        self.name, self.log = name, log
        self.connection, theirs = Pipe()
        paths = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
        with log.open("w") as printed, theirs:
            self.process = subprocess.Popen(
                # -P: the worker's folder would make benchmarks/words.py the module `words`.
                [sys.executable, "-P", str(script), str(theirs.fileno()), *words],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                cwd=tree,
                env=os.environ | (environment or {}) | {"PYTHONPATH": paths},
            )

    def ready(self) -> dict[str, Any]:
        """Wait until its first step can begin.

        Returns:
            what it trains with: package, device, precision and threads.
        """
        found = self._receive()
        assert isinstance(found, dict)
        return found

    def images_per_second(self, steps: int) -> float:
        """Train a block of steps, and return its speed."""
        self.connection.send(steps)
        images, seconds = self._receive()
        return float(images / seconds)

    def _receive(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            code = self.process.wait()
            raise SystemExit(f"{self.name} ended with {code}:\n{self.log.read_text()[-3000:]}") from None

    def close(self) -> None:
        """End the training."""
        with suppress(OSError):
            self.connection.send(0)
        self.connection.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class Comparison:
    """Images/s of each block, here and in the other commit."""

    here: list[float]
    other: list[float]

    @property
    def ratios(self) -> list[float]:
        """Of each pair of blocks: how many times as fast this working tree is."""
        return [here / other for here, other in zip(self.here, self.other, strict=True)]

    def table(self, here: str, other: str) -> str:
        rows = ["| | images/s | over the blocks |", "|---|---|---|"]
        for name, values in ((here, self.here), (other, self.other)):
            rows.append(
                f"| {name} | {statistics.median(values):.1f} | {min(values):.1f} to {max(values):.1f} |"
            )
        ratios = self.ratios
        rows.append(f"| ratio | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |")
        return "\n".join(rows)


def alternate(here: Worker, other: Worker, blocks: int, steps: int, warm_up: int) -> Comparison:
    """Time blocks of steps, the two workers in turn."""
    for worker in (here, other):
        worker.images_per_second(warm_up)
    found = Comparison([], [])
    for number in range(1, blocks + 1):
        found.here.append(here.images_per_second(steps))
        found.other.append(other.images_per_second(steps))
        print(f"block {number}: {found.here[-1]:.1f} and {found.other[-1]:.1f} images/s", flush=True)
    return found


def config_in(tree: Path, config: str) -> str:
    """A recipe's path in another tree: the same, or that of a file of this name directly in configs/."""
    for path in (config, f"configs/{Path(config).name}"):
        if (tree / path).exists():
            return path
    raise UserError(f"the other commit has no {config}: name its recipe with --against-config")


def short_hash(commit: str) -> str:
    """The short hash of a commit, whatever it is called.

    Raises:
        UserError: there is no such commit.
    """
    words = [
        "git",
        "-C",
        str(REPOSITORY),
        "rev-parse",
        "--short",
        "--verify",
        "--quiet",
        f"{commit}^{{commit}}",
    ]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    if found.returncode:
        raise UserError(f"--against {commit}: git has no such commit")
    return found.stdout.strip()


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """A work tree of a commit, removed at the end."""
    tree = folder / "other"
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
    try:
        yield tree
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def race(options: argparse.Namespace) -> dict[str, Any]:
    other = short_hash(options.against)
    common = [f"--trainer.precision={options.precision}", *STEPS_ONLY]
    own = settings(options.set)
    theirs = own if options.against_set is None else settings(options.against_set)
    environment = {} if options.threads is None else {"OMP_NUM_THREADS": str(options.threads)}
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as folder, checkout(other, Path(folder)) as tree:
        configs = options.against_config or [config_in(tree, config) for config in options.config]
        try:
            for name, where, files, set_words in (
                ("here", REPOSITORY, options.config, own),
                (other, tree, configs, theirs),
            ):
                words = ["fit", *(f"--config={file}" for file in files), *common, *set_words]
                words += ["--name=race", f"--runs_dir={folder}/runs-{len(workers)}"]
                log = Path(folder) / f"{len(workers)}.log"
                workers.append(Worker(name, where, words, log, environment))
                print(f"{name}: preparing", flush=True)
                ready = workers[-1].ready()  # before the next one starts: both may fill the same caches
                if where not in Path(ready["package"]).parents:
                    raise SystemExit(f"{name}: imagen_pl was imported from {ready['package']}, not {where}")
            found = alternate(workers[0], workers[1], options.blocks, options.steps, options.warm_up)
        finally:
            for worker in workers:
                worker.close()
    here = short_hash("HEAD") + (" with changes" if (git_state() or {}).get("changed") else "")
    recipes = (" ".join(Path(file).stem for file in files) for files in (options.config, configs))
    names = (f"{commit}, {recipe}" for commit, recipe in zip((here, other), recipes, strict=True))
    print(f"\n{found.table(*names)}\n\n{describe_machine()}")
    trained = f"{ready['device']}, {ready['precision']}, {ready['threads']} threads"
    print(f"{trained}; {options.blocks} blocks of {options.steps} steps each, in turn\n`{command_line()}`")
    return {
        **{name: ready[name] for name in ("device", "precision", "threads")},
        "images_per_second": {"here": found.here, "other": found.other},
        "other": other,
        "ratios": found.ratios,
    }


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


# ------------------------------------------------------------------ the machine


def machine() -> dict[str, Any]:
    """CPU, cores, instructions, and the variables that mask some of them."""
    capabilities = torch.cpu.get_capabilities()
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": {name: bool(capabilities.get(name)) for name in INSTRUCTIONS},
        "masks": {name: os.environ[name] for name in MASKS if name in os.environ},
        "torch": torch.__version__,
    }


def describe_machine() -> str:
    """The machine in one line."""
    found = machine()
    has = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in found["instructions"].items())
    masks = ", ".join(f"{name}={value}" for name, value in found["masks"].items())
    return (
        f"{found['cpu']}, {found['cores']} cores for this process; {has}; "
        f"{masks or 'none of them masked'}; torch {found['torch']}"
    )


def settings(pairs: Sequence[str]) -> list[str]:
    """Words for `imagen-pl fit` of KEY=VALUE."""
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--set {pair} must be KEY=VALUE")
    return [f"--{pair}" for pair in pairs]


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
    racing.add_argument("--steps", type=int, default=40, help="steps in a block (default: %(default)s)")
    racing.add_argument(
        "--warm-up", type=int, default=8, help="steps before the first block (default: %(default)s)"
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
