"""Which model came from which data: checkpoints and the data's version as artifacts of W&B."""

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

from imagen_pl.callbacks.base import callbacks_of, is_dry_run, system_of
from imagen_pl.callbacks.checkpoint import KeepCheckpoints
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.errors import UserError
from imagen_pl.storage.checkpoint_io import read_checkpoint
from imagen_pl.storage.run_folder import RunFolder
from imagen_pl.training.private_api import use_new_artifact

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

# How long the end of training waits for W&B to take the checkpoints; the upload itself goes on after that.
_PATIENCE_S = 60.0


class WandbArtifacts(Callback):
    """Hands best.ckpt and last.ckpt to W&B, by the aliases best and last, and says which data they are from.

    A run's checkpoints are versions of the artifact model-NAME-ID, each as model.ckpt. The data are an
    artifact that the run used: a short file with their digest, no images. Both are handed over when training
    has ended, the best also in between; all beside training, which never waits for the network, nor fails by
    it. A run that was stopped hands them over when it is resumed and ends. Without W&B it does nothing.

    Args:
        best_every_minutes: while training goes on, hand over a new best at most this often; null waits for
            the end.
    """

    def __init__(self, best_every_minutes: float | None = 60.0) -> None:
        if best_every_minutes is not None and best_every_minutes < 0:
            raise UserError(f"WandbArtifacts: best_every_minutes {best_every_minutes} must be 0 or more")
        self.best_every_minutes = best_every_minutes
        self._run: Run | None = None
        self._beside = _Beside()
        self._validation: dict[str, Any] = {}  # scores of the last one, and its clock
        self._data: dict[str, Any] = {}
        self._taken: dict[str, int] = {}  # clock of the checkpoint that W&B has by an alias
        self._offered_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_dry_run(trainer) or not trainer.is_global_zero:
            return
        runs = [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        self._run = next((run for run in runs if not run.disabled), None)
        if self._run is None:
            return
        self._offered_at = time.monotonic()
        data = getattr(trainer, "datamodule", None)
        if data is not None and hasattr(data, "version"):
            self._data = data.version()
            self._beside.do(partial(declare_data, self._run, self._data))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Offer the best of the validations before this one."""
        if self._run is None or trainer.sanity_checking or self.best_every_minutes is None:
            return
        if time.monotonic() - self._offered_at >= 60 * self.best_every_minutes:
            self._offered_at = time.monotonic()
            self._offer(trainer, ["best"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Checkpoints are written after this, and so hold their own scores.
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            scores = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
            scores = {name: value for name, value in scores.items() if math.isfinite(value)}
            self._validation = {"images_seen": system_of(pl_module).images_seen, "scores": scores}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is None:
            return
        self._offer(trainer, ["best", "last"])
        if not self._beside.wait(_PATIENCE_S):
            log.warning("W&B has not taken the checkpoints yet; they are in %s", trainer.default_root_dir)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._validation)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validation = dict(state_dict)

    # ------------------------------------------------------------------ beside training

    def _offer(self, trainer: Trainer, aliases: list[str]) -> None:
        keeper = next((c for c in callbacks_of(trainer) if isinstance(c, KeepCheckpoints)), None)
        if keeper is not None:
            paths = {"best": keeper.best_model_path, "last": keeper.last_model_path}
            wanted = {alias: Path(paths[alias]) for alias in aliases if paths[alias]}
            self._beside.do(partial(self._hand_over, RunFolder(trainer.default_root_dir), wanted))

    def _hand_over(self, folder: RunFolder, paths: dict[str, Path]) -> None:
        """Log what W&B does not have yet; best and last of one clock are one version."""
        assert self._run is not None
        origins = {alias: self._origin(path) for alias, path in paths.items() if path.is_file()}
        by_clock: dict[int, list[str]] = {}
        for alias, origin in origins.items():
            by_clock.setdefault(origin["images_seen"], []).append(alias)
        for clock, aliases in by_clock.items():
            if any(self._taken.get(alias) != clock for alias in aliases):
                name = f"model-{folder.name.removesuffix(f'-{self._run.id}')}-{self._run.id}"
                log_model(self._run, name, paths[aliases[0]], aliases, origins[aliases[0]])
                self._taken |= dict.fromkeys(aliases, clock)

    def _origin(self, path: Path) -> dict[str, Any]:
        """What a checkpoint is, from the file itself: it is not always that of now."""
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
    """Log a checkpoint as model.ckpt; W&B copies it first, so the file may be written anew at once."""
    import wandb

    artifact = wandb.Artifact(_valid(name), type="model", metadata=metadata)
    artifact.add_file(str(path), name="model.ckpt", skip_cache=True)
    run.log_artifact(artifact, aliases=aliases)


def declare_data(run: Run, version: dict[str, Any]) -> None:
    """Say that the run uses these data, by an artifact with their digest; the images stay where they are."""
    import wandb

    artifact = wandb.Artifact(_valid(f"data-{version['name']}"), type="dataset", metadata=version)
    # The same data make the same file, and so the same version.
    with artifact.new_file("data.json") as file:
        json.dump(version, file, indent=2, sort_keys=True)
    use_new_artifact(run, artifact, [version["digest"]])


def _valid(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:128]


class _Beside:
    """Does one job after another in a thread; what fails is told in one line."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def do(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            # A daemon, so that a server that never answers does not keep the process.
            self._thread = threading.Thread(target=self._work, name="wandb artifacts", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def wait(self, timeout_s: float) -> bool:
        """Whether all jobs so far are done in this time."""
        if self._thread is None:
            return True
        done = threading.Event()
        self._jobs.put(done.set)
        return done.wait(timeout_s)

    def _work(self) -> None:
        while True:
            try:
                self._jobs.get()()
            except Exception as error:  # of many kinds, by what W&B and the network do
                log.warning("W&B did not take an artifact, training is not touched: %s", error)
