"""Whether the memory of a training grows: hours of `imagen-pl fit`, with validation, samples and checkpoints.

    python -m benchmarks.soak --minutes 120
    python -m benchmarks.soak --table

Every ten seconds it reads the resident memory of the process, and the proportional memory of the process and
its workers together. The first tenth of the time is the warm-up (caches, the first validation) and does not
count. The growth is that of the median from the first quarter of the rest to its last quarter. At the end the
run gets Ctrl-C and must save a checkpoint. Unknown options are passed to `imagen-pl fit`. Linux only.

Writes JSON to --out; --table prints its figures.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation import REPOSITORY, RESULTS
from benchmarks.demo_memory import resident_mb
from benchmarks.faults import logged_images
from benchmarks.machine import command_line, machine
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.storage.checkpoint_io import read_checkpoint
from imagen_pl.storage.run_folder import RunFolder

_WARM_UP = 0.1  # share of the time that does not count


def processes(pid: int) -> list[int]:
    """A process and all those below it."""
    found = [pid]
    for parent in found:
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in file.read_text().split()]
    return found


def proportional_mb(pid: int) -> float:
    """Memory of a process and those below it, MB: what several share is counted once."""
    total = 0
    for process in processes(pid):
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:  # it has just ended
            continue
        total += int(text.partition("\nPss:")[2].split()[0])
    return total / 1000


def growth(minutes: Sequence[float], megabytes: Sequence[float], warm_up: float) -> float:
    """Growth of the median memory from the first to the last quarter after the warm-up, as a share.

    Args:
        minutes: times of the readings.
        megabytes: the readings.
        warm_up: minutes that do not count.
    """
    start, end = warm_up, minutes[-1]
    quarter = (end - start) / 4
    pairs = list(zip(minutes, megabytes, strict=True))
    first = statistics.median(memory for minute, memory in pairs if start <= minute <= start + quarter)
    last = statistics.median(memory for minute, memory in pairs if minute >= end - quarter)
    return last / first - 1


def watch(words: Sequence[str], folder: Path, minutes: float, every_s: float) -> dict[str, Any]:
    """Train for some minutes, end with Ctrl-C, and return the readings.

    Args:
        words: options of `imagen-pl fit`.
        folder: an empty folder for the run and its log.
        minutes: time from the first batch.
        every_s: time between two readings.
    """
    run = RunFolder(folder / "soak")
    command = [
        *(sys.executable, "-m", "imagen_pl.cli.main", "fit", *words),
        *("--runs_dir", str(folder), "--name", "soak", "--existing", "move"),
    ]
    with (folder / "soak.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
    readings: dict[str, list[float]] = {
        "minutes": [],
        "resident_mb": [],
        "proportional_mb": [],
        "images_seen": [],
    }
    try:
        while process.poll() is None and not logged_images(run):
            time.sleep(0.5)
        start = time.monotonic()
        while process.poll() is None and time.monotonic() - start < 60 * minutes:
            now = (time.monotonic() - start) / 60
            values = (now, resident_mb(process.pid), proportional_mb(process.pid), logged_images(run))
            for name, value in zip(readings, values, strict=True):
                readings[name].append(round(value, 2))
            time.sleep(every_s)
        process.send_signal(signal.SIGINT)
        code = process.wait(300)
    finally:
        process.kill()
    if not readings["minutes"] or readings["minutes"][-1] < 0.9 * minutes:
        raise SystemExit(
            f"the training ended early:\n{(folder / 'soak.log').read_text(errors='replace')[-2000:]}"
        )
    saved = read_checkpoint(run.checkpoints / "last.ckpt")["images_seen"]
    return {"readings": readings, "exit_code": code, "images_saved": int(saved)}


def table(result: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    readings = result["readings"]
    minutes = readings["minutes"]
    rows = [
        "| | first reading | largest | last reading | growth after the warm-up |",
        "|---|---|---|---|---|",
    ]
    for name, title in (("resident_mb", "the process"), ("proportional_mb", "with its workers")):
        values = readings[name]
        share = growth(minutes, values, _WARM_UP * minutes[-1])
        rows.append(
            f"| {title} | {values[0]:.0f} MB | {max(values):.0f} MB | {values[-1]:.0f} MB | {share:+.1%} |"
        )
    rows += ["", f"{minutes[-1]:.0f} minutes, {result['images_saved']:,} images"]
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument(
        "--minutes", type=float, default=120.0, help="time from the first batch (default: 120)"
    )
    parser.add_argument(
        "--config", default="configs/experiment/icons32.yaml", help="configuration (default: %(default)s)"
    )
    parser.add_argument("--every_s", type=float, default=10.0, help="time between readings (default: 10)")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json", help="JSON file for the readings")
    parser.add_argument("--table", action="store_true", help="only print the figures in --out")
    arguments, more = parser.parse_known_args(argv)
    if not arguments.table:
        with tempfile.TemporaryDirectory() as folder:
            result = {
                "command": command_line(),
                "git": git_state(),
                "machine": machine(),
                **watch(
                    ["--config", arguments.config, *more], Path(folder), arguments.minutes, arguments.every_s
                ),
            }
        with atomic_write(arguments.out) as file:
            file.write((json.dumps(result) + "\n").encode())
    print(table(json.loads(arguments.out.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
