"""What is written down about a run: its configuration, its origin, and every number by images seen."""

from __future__ import annotations

import csv
import io
import json
import platform
import shlex
import subprocess
import time
from argparse import Namespace
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from imagen_pl.callbacks.base import is_dry_run
from imagen_pl.files import written_whole
from imagen_pl.runs import RunFolder

_PACKAGES = ("imagen_pl", "torch", "lightning", "jsonargparse", "transformers", "torchmetrics", "numpy")


class MetricsFile(Logger):
    """metrics.csv: one row for each clock at which something was logged, `images_seen` first.

    A resumed run goes on with the file. Where it has gone back to an earlier checkpoint, rows from
    there on are written anew.

    Args:
        save_dir: the run's folder.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._columns: list[str] | None = None  # None: the file was not looked at yet
        self._row: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            raise ValueError("metrics.csv has a row for each clock: give step, the images seen")
        if self._row and self._row["images_seen"] != step:
            self.save()
        self._row = {**self._row, **metrics, "images_seen": step}

    @rank_zero_only
    def save(self) -> None:
        if not self._row:
            return
        if self._columns is None:
            self._go_on(self._row["images_seen"])
        assert self._columns is not None
        new = sorted(self._row.keys() - set(self._columns))
        if new:
            rows = _read(self.path)
            self._columns = [*self._columns, *new]
            _write(self.path, self._columns, rows)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(self._row)
        self._row = {}

    def _go_on(self, images_seen: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = _read(self.path)
        self._columns = list(rows[0]) if rows else ["images_seen"]
        kept = [row for row in rows if int(row["images_seen"]) < images_seen]
        _write(self.path, self._columns, kept)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    with written_whole(path) as file:
        file.write(text.getvalue().encode())


class Tracking(Callback):
    """Keeps a run's configuration and origin: in its folder, in every checkpoint and in the trackers.

    Args:
        config: everything that was set, as YAML; it goes into config.yaml and into the checkpoints,
            so that a single file is enough to draw pictures.
        run_id: what names the run to trackers; the same after a resume.
        command: the command line, for the record.
    """

    def __init__(self, config: str, run_id: str, command: list[str]) -> None:
        self.config, self.run_id, self.command = config, run_id, command

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        origin = {"git": git_state(), "versions": versions()}
        if not is_dry_run(trainer):
            self._write(RunFolder(trainer.default_root_dir), origin)
        for logger in trainer.loggers:
            logger.log_hyperparams({**(yaml.safe_load(self.config) or {}), **origin})
            if isinstance(logger, WandbLogger):
                images_on_x_axis(logger)

    def _write(self, run: RunFolder, origin: dict[str, Any]) -> None:
        run.path.mkdir(parents=True, exist_ok=True)
        if run.config.exists() and run.config.read_text() != self.config:
            # A resume with other settings: keep those that led up to here.
            changed = time.strftime("%Y%m%d-%H%M%S", time.localtime(run.config.stat().st_mtime))
            run.config.rename(run.config.with_name(f"config-{changed}.yaml"))
        with written_whole(run.config) as file:
            file.write(self.config.encode())
        record = run.read_record()
        record["id"] = self.run_id
        start = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": shlex.join(self.command),
            "host": platform.node(),
            **origin,
        }
        record["starts"] = [*record.get("starts", []), start]
        with written_whole(run.record) as file:
            file.write((json.dumps(record, indent=2) + "\n").encode())

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["config"] = self.config


def images_on_x_axis(logger: WandbLogger) -> None:
    """Draw every chart over the images seen; Lightning would take its own count of steps."""
    run = logger.experiment
    run.define_metric("images_seen", hidden=True)
    run.define_metric("trainer/global_step", step_metric="images_seen", hidden=True)
    run.define_metric("*", step_metric="images_seen", step_sync=True)


def git_state() -> dict[str, Any] | None:
    """Commit of the folder that training was started in; None where there is no git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
