"""The loggers of a run: where they write, and W&B's start."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger, WandbLogger

from imagen_pl.cli.lightning_cli import one_line
from imagen_pl.errors import UserError
from imagen_pl.storage.run_folder import RunFolder
from imagen_pl.training.private_api import start_wandb_offline

log = logging.getLogger(__name__)


def loggers_of_run(loggers: Any, run: RunFolder, name: str, run_id: str) -> Any:
    """`trainer.logger` with every logger writing into the run's folder; False turns all off.

    Args:
        loggers: the setting as parsed: a list, one logger, a boolean or None.
        run: the run's folder.
        name: the run's name.
        run_id: the run's id, which W&B takes too, so that a resumed run continues there.
    """
    if loggers is False:
        return False
    loggers = [] if loggers in (None, True) else loggers if isinstance(loggers, list) else [loggers]
    for logger in loggers:
        if logger.get("init_args") is None:
            logger["init_args"] = Namespace()
        arguments = logger["init_args"]
        kind = logger["class_path"].rsplit(".", 1)[-1]
        arguments["save_dir"] = str(run.path)
        if kind == "WandbLogger":
            arguments["name"] = arguments.get("name") or name
            if not arguments.get("version"):
                arguments["id"] = arguments.get("id") or run_id
            if not any(arguments.get(way) for way in ("resume", "resume_from", "fork_from")):
                # The parser passes wandb.init's default null, which would overwrite a known id.
                arguments["resume"] = "allow"
        elif kind in ("TensorBoardLogger", "CSVLogger"):
            arguments["name"], arguments["version"] = "", kind.removesuffix("Logger").lower()
    return loggers


def open_wandb(loggers: Iterable[Logger]) -> None:
    """Start W&B if the run uses it, so that wrong settings stop the run at once.

    If its server cannot be reached, the run is recorded offline.

    Raises:
        UserError: W&B cannot start.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            try:
                _ = logger.experiment
            except wandb.errors.CommError as error:
                if isinstance(error, wandb.errors.AuthenticationError):
                    raise UserError(f"W&B: {one_line(str(error))}") from error
                log.warning(
                    "W&B cannot be reached (%s): this start is recorded offline, for `wandb sync`",
                    one_line(str(error)),
                )
                start_wandb_offline(logger)
            except wandb.errors.Error as error:
                raise UserError(
                    f"W&B: {one_line(str(error))} (WANDB_MODE=offline keeps everything on this machine)"
                ) from error
