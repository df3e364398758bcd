"""Training speed of two commits side by side: `python -m benchmarks.speed race`."""

from __future__ import annotations

import argparse
import os
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

from benchmarks.machine import command_line, describe_machine
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.errors import UserError

REPOSITORY = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("speed_worker.py")
# Only training steps are timed.
STEPS_ONLY = (
    *("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0", "--checkpoint.monitor=null"),
    *("--samples.captions=[]", "--samples.every_kimg=1000000", "--data.epoch_kimg=10000"),
    "--trainer.enable_progress_bar=false",
)


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


def settings(pairs: Sequence[str]) -> list[str]:
    """Words for `imagen-pl fit` of KEY=VALUE."""
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--set {pair} must be KEY=VALUE")
    return [f"--{pair}" for pair in pairs]
