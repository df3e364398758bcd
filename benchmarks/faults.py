"""Kills a training repeatedly with SIGKILL, resumes it, and counts damaged files and lost images.

    python -m benchmarks.faults --kills 10
    python -m benchmarks.faults --kills 10 --table

A run is started, killed with all its workers at a random time after its first batch, and resumed with the
command that a user would type. Every second kill happens during the writing of a checkpoint.
After each kill all checkpoints must be readable. At the end the run is resumed until it finishes, and its
weights are compared, bit for bit, with those of an uninterrupted run.

Images trained twice are those after the newest checkpoint. Unknown options are passed to `imagen-pl fit`.
The counts are written as JSON to --out; --table prints them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation import REPOSITORY, RESULTS
from benchmarks.machine import command_line, machine
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.errors import UserError
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.storage.checkpoint_io import read_checkpoint
from imagen_pl.storage.run_folder import RunFolder

_START_S = 300.0  # longest wait for the first new row of metrics.csv


class Trial:
    """One run that is killed and resumed.

    Args:
        folder: an empty folder.
        words: options of `imagen-pl fit`.
    """

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        self.folder, self.words = folder, list(words)
        self.run = RunFolder(folder / "killed")

    def command(self, name: str) -> list[str]:
        return [
            *(sys.executable, "-m", "imagen_pl.cli.main", "fit", *self.words),
            *("--runs_dir", str(self.folder), "--name", name, "--existing", "resume"),
        ]

    def finish(self, name: str) -> dict[str, Any]:
        """Train to the end, and return the last checkpoint."""
        with (self.folder / f"{name}.log").open("ab") as log:
            subprocess.run(self.command(name), cwd=REPOSITORY, stdout=log, stderr=log, check=True)
        return read_checkpoint(self.folder / name / "checkpoints" / "last.ckpt")

    def kill_once(self, delay_s: float, while_saving: bool) -> dict[str, Any]:
        """Start or resume the run, kill it, and count what it left.

        Args:
            delay_s: time between the first new row of metrics.csv and the kill.
            while_saving: wait for the next checkpoint after that, and kill while it is written.
        """
        before = logged_images(self.run)
        with (self.folder / "killed.log").open("ab") as log:
            process = subprocess.Popen(
                self.command("killed"), cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True
            )
        limit = time.monotonic() + _START_S
        while process.poll() is None and logged_images(self.run) == before and time.monotonic() < limit:
            time.sleep(0.02)
        if process.poll() is None and logged_images(self.run) == before:
            os.killpg(process.pid, signal.SIGKILL)
            raise SystemExit(f"the run logged nothing within {_START_S:.0f} s: see {self.folder}/killed.log")
        # Without those that this process is writing: their names have its id.
        leftovers = len([file for file in part_files(self.run) if f".{process.pid}." not in file.name])
        time.sleep(delay_s)
        while while_saving and process.poll() is None and not part_files(self.run):
            time.sleep(0.0005)
        ended = process.poll() is not None
        if not ended:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        saved, damaged = 0, 0
        for path in self.run.checkpoints.glob("*.ckpt"):
            try:
                saved = max(saved, int(read_checkpoint(path)["images_seen"]))
            except UserError:
                damaged += 1
        return {
            "ended": ended,
            "while_saving": while_saving,
            "part_files_at_kill": len(part_files(self.run)),
            "part_files_after_start": leftovers,
            "damaged_checkpoints": damaged,
            "images_saved": saved,
            "images_lost": max(logged_images(self.run) - saved, 0),
        }


def part_files(run: RunFolder) -> list[Path]:
    """Files that are being written, or were left by a killed process."""
    return list(run.path.rglob(".*.part"))


def logged_images(run: RunFolder) -> int:
    """Largest images_seen in metrics.csv; 0 if there is none."""
    try:
        with run.metrics.open(newline="", encoding="utf-8") as file:
            return max((int(row["images_seen"]) for row in csv.DictReader(file)), default=0)
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two checkpoints have bitwise equal weights and the same images_seen."""
    first, second = a["state_dict"], b["state_dict"]
    same = a["images_seen"] == b["images_seen"] and first.keys() == second.keys()
    return same and all(torch.equal(first[name], second[name]) for name in first)


def table(result: dict[str, Any]) -> str:
    """The counts as a Markdown table."""
    kills = [kill for kill in result["kills"] if not kill["ended"]]
    lost = [kill["images_lost"] for kill in kills]
    rows = [
        ("kills", len(kills)),
        ("of them while a checkpoint was written", sum(kill["part_files_at_kill"] > 0 for kill in kills)),
        ("damaged checkpoints", sum(kill["damaged_checkpoints"] for kill in kills)),
        ("part files left after the next start", sum(k["part_files_after_start"] for k in result["kills"])),
        ("part files left at the end", result["part_files_at_end"]),
        (
            "images trained twice, mean (largest)",
            f"{sum(lost) / max(len(lost), 1):.0f} ({max(lost, default=0)})",
        ),
        ("weights equal those of a run without a stop", "yes" if result["equal"] else "no"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--kills", type=int, default=10, help="number of kills (default: 10)")
    parser.add_argument("--config", default="configs/debug/tiny.yaml", help="configuration to train")
    parser.add_argument(
        "--longest_s", type=float, default=1.0, help="longest time between first batch and kill (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the kill times (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS / "faults.json", help="JSON file for the counts")
    parser.add_argument("--table", action="store_true", help="only print the counts in --out")
    arguments, more = parser.parse_known_args(argv)
    if not arguments.table:
        times = random.Random(arguments.seed)
        words = ["--config", arguments.config, "--trainer.log_every_n_steps", "1", *more]
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(Path(folder), words)
            whole = trial.finish("whole")
            kills = []
            for i in range(arguments.kills):
                kills.append(trial.kill_once(times.uniform(0, arguments.longest_s), while_saving=i % 2 == 1))
                print(json.dumps(kills[-1]), flush=True)
            result = {
                "command": command_line(),
                "git": git_state(),
                "machine": machine(),
                "kills": kills,
                "equal": equal(trial.finish("killed"), whole),
                "part_files_at_end": len(part_files(trial.run)),
            }
        with atomic_write(arguments.out) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())
    print(table(json.loads(arguments.out.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
