"""Saves a checkpoint when training stops early."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from imagen_pl.callbacks.base import is_dry_run
from imagen_pl.errors import TrainingStopped, UserError
from imagen_pl.training.private_api import dump_checkpoint


class Interrupted(BaseException):
    """Training was interrupted by a signal, and its state is saved. Not an error, so not an Exception.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class GracefulStop(Callback):
    """Ctrl-C and SIGTERM end training after the current batch and save last.ckpt.

    A second Ctrl-C ends it at once. If an error ends training (a loss that is not finite, out of memory), the
    state is saved in stopped.ckpt.

    Args:
        say: prints a line to the user.

    Attributes:
        saved: the checkpoint written when training stopped, if any.
        stopped_at_once: whether Ctrl-C ended the run at once: before training, or at the second Ctrl-C.
    """

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self.say = say
        self.saved: Path | None = None
        self.stopped_at_once = False
        self._signal: int | None = None
        self._reported = False
        self._training = False
        self._pid = os.getpid()
        self._previous_handlers: dict[int, Any] = {}
        self._loop_state: dict[str, Any] | None = None

    # ------------------------------------------------------------------ signals

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Before the loader's workers are forked: they inherit the handler, which does nothing in a worker,
        # so they survive the signal and still deliver the current batch.
        if stage == "fit":
            self._install_handlers()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Again: Lightning has wrapped the SIGTERM handler in one that communicates with the other processes
        # at once, in the middle of a step.
        self._install_handlers()
        self._training = True

    def _install_handlers(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers.setdefault(signum, signal.getsignal(signum))
                signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # in a loader's worker; the main process decides
        if not self._training:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            raise Interrupted(signum)
        if self._signal is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signum

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._training = False
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._previous_handlers.items():
                signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        self._previous_handlers.clear()

    # ------------------------------------------------------------------ stopping

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop_if_requested(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            # A resume must not start in the middle of validation, since the scores so far are lost.
            self._loop_state = deepcopy(trainer.fit_loop.state_dict())

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        # With several processes, their numbers of batches may differ, so they stop after validation.
        if trainer.world_size == 1 and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_requested(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            if trainer.world_size > 1:
                self._stop_if_requested(trainer)
            self._loop_state = None

    def _stop_if_requested(self, trainer: Trainer) -> None:
        requested = self._signal is not None
        if requested and not self._reported:
            self._reported = True
            self.say("\nStopping: saving a checkpoint first (Ctrl-C again stops at once)")
        if trainer.world_size > 1:
            # The signal may reach the processes at different batches, or only one of them.
            requested = trainer.strategy.reduce_boolean_decision(requested, all=False)
        if requested:
            self._save(trainer, "last.ckpt")
            raise Interrupted(self._signal or signal.SIGTERM)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._training = False
        self.stopped_at_once = isinstance(exception, KeyboardInterrupt)
        if self.saved or trainer.state.fn != "fit" or isinstance(exception, UserError | KeyboardInterrupt):
            return
        if not trainer.optimizers or trainer.sanity_checking or not getattr(pl_module, "images_seen", 0):
            return  # nothing was trained yet
        # If a signal to all processes has killed a loader's worker, its error arrives here first.
        stopping = self._signal is not None and not isinstance(exception, TrainingStopped)
        self._save(trainer, "last.ckpt" if stopping else "stopped.ckpt")
        if stopping and isinstance(exception, Exception):
            raise Interrupted(self._signal or signal.SIGTERM) from exception

    def _save(self, trainer: Trainer, name: str) -> None:
        """Save a checkpoint without waiting for the other processes, since one may have failed."""
        if is_dry_run(trainer):
            return
        checkpoint = dump_checkpoint(trainer)
        if self._loop_state is not None:
            checkpoint["loops"]["fit_loop"] = self._loop_state
        path = Path(trainer.default_root_dir) / "checkpoints" / name
        self.saved = path
        trainer.strategy.save_checkpoint(checkpoint, path)
