"""The training of a visit: `imagen-pl fit` as a process that ends in time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.ablation import images_per_second, read_metrics
from imagen_pl.callbacks.base import callbacks_of
from imagen_pl.callbacks.checkpoint import KeepCheckpoints

CHECKPOINT_S = 90  # between two checkpoints
STOP_S = 30  # from Ctrl-C to the end of a training


class TimedCheckpoints(Callback):
    """Writes last.ckpt at least every so many seconds of training."""

    def __init__(self, every_s: float) -> None:
        self.every_s, self._saved_s = every_s, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        if time.monotonic() - self._saved_s >= self.every_s:
            self._saved_s = time.monotonic()
            next(c for c in callbacks_of(trainer) if isinstance(c, KeepCheckpoints)).save_last_now(trainer)


def train(words: Sequence[str], tree: Path, work: Path, until_s: float) -> dict[str, Any]:
    """Train until a time, `time.monotonic()`: what was done."""
    left_s = max(10.0, until_s - time.monotonic())
    limit_s = round(left_s - min(15, left_s / 4))  # the process has to start and to end
    clock = f"00:{limit_s // 3600:02}:{limit_s // 60 % 60:02}:{limit_s % 60:02}"
    arguments = {"every_s": CHECKPOINT_S}
    saver = {"class_path": "benchmarks.gpu_visit.training.TimedCheckpoints", "init_args": arguments}
    own = ["--name=visit", f"--runs_dir={work}/runs", f"--trainer.max_time={clock}"]
    own += ["--trainer.enable_progress_bar=false", f"--trainer.callbacks+={json.dumps(saver)}"]
    start = time.monotonic()
    code = child(["fit", *words, *own], tree, work / "training.log", left_s)
    found: dict[str, Any] = {"exit_code": code, "seconds": time.monotonic() - start, "max_time": clock}
    with suppress(OSError, IndexError, KeyError, ValueError):  # of a training that was killed, half a row
        rows = read_metrics(work / "runs/visit/metrics.csv")
        found["images_seen"] = int(rows[-1]["images_seen"])
        with suppress(ZeroDivisionError):
            found["images_per_second"] = images_per_second(rows)
    return found


def child(words: Sequence[str], tree: Path, log: Path, limit_s: float) -> int:
    """Run `imagen-pl` as a process; after the limit it gets a Ctrl-C, and half a minute to stop."""
    command = [sys.executable, "-m", "imagen_pl.cli.main", *words]
    with log.open("w") as printed:
        process = subprocess.Popen(
            command, cwd=tree, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT
        )
    try:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(limit_s)
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(STOP_S)
        return -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
