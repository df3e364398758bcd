"""W&B artifacts of checkpoints and of the data version, to record which data a model was trained on."""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from imagen_pl.callbacks.base import callbacks_of, gan_of, is_dry_run
from imagen_pl.callbacks.checkpoint import KeepCheckpoints
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.errors import UserError
from imagen_pl.storage.checkpoint_io import read_checkpoint
from imagen_pl.storage.run_folder import RunFolder
from imagen_pl.training.private_api import use_new_artifact

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

# How long to wait, after training, until W&B has accepted the checkpoints; the upload itself then continues.
_MAX_WAIT_S = 60.0


class WandbArtifacts(Callback):
    """Logs best.ckpt and last.ckpt to W&B, with the aliases best and last, and the data they were trained on.

    A run's checkpoints are versions of the artifact model-NAME-ID, each as model.ckpt. The data is recorded
    as an artifact that the run uses: a short file with the digest of the data, no images. Checkpoints are
    logged when training ends, the best one also in between. Everything runs in a background thread: training
    never waits for the network, and a network error does not stop it. The checkpoints of an interrupted run
    are logged when the run is resumed and ends. Without W&B the callback does nothing.

    Args:
        best_every_minutes: during training, log a new best at most this often, minutes; null logs it only at
            the end.
    """

    def __init__(self, best_every_minutes: float | None = 60.0) -> None:
        if best_every_minutes is not None and best_every_minutes < 0:
            raise UserError(f"WandbArtifacts: best_every_minutes {best_every_minutes} must be 0 or more")
        self.best_every_minutes = best_every_minutes
        self._run: Run | None = None
        self._jobs_in_background = _BackgroundJobs()
        self._validation: dict[str, Any] = {}  # scores of the last validation, and its clock
        self._data: dict[str, Any] = {}
        self._logged_at: dict[str, int] = {}  # clock of the checkpoint that W&B has, by alias
        self._last_attempt_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_dry_run(trainer) or not trainer.is_global_zero:
            return
        runs = [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        self._run = next((run for run in runs if not run.disabled), None)
        if self._run is None:
            return
        self._last_attempt_at = time.monotonic()
        data = getattr(trainer, "datamodule", None)
        if data is not None and hasattr(data, "version"):
            self._data = data.version()
            self._jobs_in_background.submit(partial(declare_data, self._run, self._data))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the best checkpoint so far, if enough time has passed."""
        if self._run is None or trainer.sanity_checking or self.best_every_minutes is None:
            return
        if time.monotonic() - self._last_attempt_at >= 60 * self.best_every_minutes:
            self._last_attempt_at = time.monotonic()
            self._log_checkpoints(trainer, ["best"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Checkpoints are written after this, so each contains its own scores.
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            scores = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
            scores = {name: value for name, value in scores.items() if math.isfinite(value)}
            self._validation = {"images_seen": gan_of(pl_module).images_seen, "scores": scores}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is None:
            return
        self._log_checkpoints(trainer, ["best", "last"])
        if not self._jobs_in_background.wait(_MAX_WAIT_S):
            log.warning("W&B has not accepted the checkpoints yet; they are in %s", trainer.default_root_dir)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._validation)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validation = dict(state_dict)

    # ------------------------------------------------------------------ in the background

    def _log_checkpoints(self, trainer: Trainer, aliases: list[str]) -> None:
        keeper = next((c for c in callbacks_of(trainer) if isinstance(c, KeepCheckpoints)), None)
        if keeper is not None:
            paths = {"best": keeper.best_model_path, "last": keeper.last_model_path}
            paths_by_alias = {alias: Path(paths[alias]) for alias in aliases if paths[alias]}
            self._jobs_in_background.submit(
                partial(self._log_new_checkpoints, RunFolder(trainer.default_root_dir), paths_by_alias)
            )

    def _log_new_checkpoints(self, folder: RunFolder, paths: dict[str, Path]) -> None:
        """Log checkpoints that W&B does not have yet; best and last with the same clock are one version."""
        assert self._run is not None
        origins = {alias: self._origin(path) for alias, path in paths.items() if path.is_file()}
        by_clock: dict[int, list[str]] = {}
        for alias, origin in origins.items():
            by_clock.setdefault(origin["images_seen"], []).append(alias)
        for clock, aliases in by_clock.items():
            if any(self._logged_at.get(alias) != clock for alias in aliases):
                name = f"model-{folder.name.removesuffix(f'-{self._run.id}')}-{self._run.id}"
                log_model(self._run, name, paths[aliases[0]], aliases, origins[aliases[0]])
                self._logged_at |= dict.fromkeys(aliases, clock)

    def _origin(self, path: Path) -> dict[str, Any]:
        """Metadata of a checkpoint, read from the file: it may be older than the current state."""
        checkpoint = read_checkpoint(path, mmap=True)
        validation = checkpoint.get("callbacks", {}).get(self.state_key, {})
        git = git_state()
        return {
            "images_seen": checkpoint["images_seen"],
            "resolution": checkpoint["growth_resolution"],
            "scores": validation.get("scores", {}),
            "scores_at_images_seen": validation.get("images_seen"),
            "git_commit": git["commit"] if git else None,
            "data_digest": self._data.get("digest"),
        }


def log_model(run: Run, name: str, path: Path, aliases: list[str], metadata: dict[str, Any]) -> None:
    """Log a checkpoint as model.ckpt; W&B copies it first, so the file may be overwritten at once."""
    import wandb

    artifact = wandb.Artifact(_valid(name), type="model", metadata=metadata)
    artifact.add_file(str(path), name="model.ckpt", skip_cache=True)
    run.log_artifact(artifact, aliases=aliases)


def declare_data(run: Run, version: dict[str, Any]) -> None:
    """Record that the run uses this data, as an artifact with the digest; no images are uploaded."""
    import wandb

    artifact = wandb.Artifact(_valid(f"data-{version['name']}"), type="dataset", metadata=version)
    # The same data gives the same file, and so the same version.
    with artifact.new_file("data.json") as file:
        json.dump(version, file, indent=2, sort_keys=True)
    use_new_artifact(run, artifact, [version["digest"]])


def _valid(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:128]


class _BackgroundJobs:
    """Runs jobs one after another in a background thread; a failed job is logged in one line."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            # A daemon, so that a server that never answers does not keep the process alive.
            self._thread = threading.Thread(target=self._work, name="wandb artifacts", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def wait(self, timeout_s: float) -> bool:
        """Wait until all jobs so far are done; False if that takes longer than the timeout."""
        if self._thread is None:
            return True
        done = threading.Event()
        self._jobs.put(done.set)
        return done.wait(timeout_s)

    def _work(self) -> None:
        while True:
            try:
                self._jobs.get()()
            except Exception as error:  # W&B and the network raise many types
                log.warning("W&B did not accept an artifact; training is not affected: %s", error)
