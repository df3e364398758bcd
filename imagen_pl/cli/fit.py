"""`imagen-pl fit`: train a model, and say how to resume a run that was stopped."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from imagen_pl.callbacks.graceful_stop import Interrupted
from imagen_pl.cli.predictions import Predicting
from imagen_pl.cli.training_cli import TrainingCLI
from imagen_pl.errors import TrainingStopped
from imagen_pl.storage.run_folder import is_main_process
from imagen_pl.training.malloc import keep_freed_memory


def run(words: Sequence[str], verb: str = "fit", predicting: Predicting | None = None) -> int:
    """Run `imagen-pl fit`, or another verb of Lightning, and say how to resume what was stopped."""
    keep_freed_memory()
    cli = TrainingCLI.__new__(
        TrainingCLI
    )  # so that the run folder can be named even if its constructor fails
    try:
        cli.__init__([verb, *words], predicting=predicting)  # type: ignore[misc]
    except Interrupted as stop:
        if not is_main_process():
            return 0  # else Lightning's launcher kills the main process, which may still be writing
        if cli.stopper.saved:
            print(f"Stopped at {cli.model.images_seen:,} images; saved {cli.stopper.saved}")
            print(f"Resume: {cli.run_folder.resume_command()}", flush=True)
        return 128 + stop.signum
    except SystemExit:  # Lightning's answer to a Ctrl-C that could not wait
        if not cli.stopper.stopped_at_once:
            raise
        if is_main_process():
            saved = cli.run_folder.newest_checkpoint()
            resume = f"Resume from {saved}: {cli.run_folder.resume_command()}"
            print(f"Stopped at once. {resume if saved else 'Nothing was saved yet.'}", flush=True)
        return 128 + signal.SIGINT
    except TrainingStopped as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        if cli.stopper.saved:
            print(f"The weights before it are in {cli.stopper.saved}", file=sys.stderr)
        return 1
    finally:
        if hasattr(cli, "run_lock"):
            cli.run_lock.release()
    return 0
