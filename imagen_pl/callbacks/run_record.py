"""Records a run: its configuration, git commit, package versions and command lines."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from imagen_pl.callbacks.base import is_dry_run
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.storage.run_folder import RunFolder
from imagen_pl.training.logger_faults import survive_tracker

_PACKAGES = ("imagen_pl", "torch", "lightning", "jsonargparse", "transformers", "torchmetrics", "numpy")


class RunRecord(Callback):
    """Saves a run's configuration and origin to its folder, to every checkpoint and to the loggers.

    Args:
        config: the complete configuration as YAML; it is saved in config.yaml and in the checkpoints, so that
            a checkpoint alone is enough to sample images.
        run_id: id of the run for loggers such as W&B; the same after a resume.
        command: the command line, for the record.
    """

    def __init__(self, config: str, run_id: str, command: list[str]) -> None:
        self.config, self.run_id, self.command = config, run_id, command

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        origin = {"git": git_state(), "versions": versions(), "precision": trainer.precision}
        resumed = bool(RunFolder(trainer.default_root_dir).read_record().get("starts"))
        if not is_dry_run(trainer):
            self._write(RunFolder(trainer.default_root_dir), origin)
        settings = {**(yaml.safe_load(self.config) or {}), **origin}
        for logger in trainer.loggers:
            if isinstance(logger, MLFlowLogger) and resumed:
                continue  # MLflow raises an error if a logged setting changes
            with survive_tracker(logger):
                logger.log_hyperparams(settings)
                if isinstance(logger, WandbLogger):
                    images_on_x_axis(logger)

    def _write(self, run: RunFolder, origin: dict[str, Any]) -> None:
        run.path.mkdir(parents=True, exist_ok=True)
        if run.config.exists() and run.config.read_text() != self.config:
            # A resume with other settings: keep the earlier ones under a new name.
            changed = time.strftime("%Y%m%d-%H%M%S", time.localtime(run.config.stat().st_mtime))
            run.config.rename(run.config.with_name(f"config-{changed}.yaml"))
        with atomic_write(run.config) as file:
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
        with atomic_write(run.record) as file:
            file.write((json.dumps(record, indent=2) + "\n").encode())

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["config"] = self.config
        checkpoint["precision"] = trainer.precision  # a resume continues in this precision


def images_on_x_axis(logger: WandbLogger) -> None:
    """Plot every W&B chart over the images seen instead of Lightning's step count."""
    run = logger.experiment
    run.define_metric("images_seen", hidden=True)
    run.define_metric("trainer/global_step", step_metric="images_seen", hidden=True)
    run.define_metric("*", step_metric="images_seen", step_sync=True)


def git_state() -> dict[str, Any] | None:
    """Git commit of the working directory; None without git or a repository."""

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
    """Versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
