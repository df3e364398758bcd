"""The loggers of a run: where they write, and W&B's start."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger, WandbLogger

from imagen_pl.cli.lightning_cli import one_line
from imagen_pl.errors import UserError
from imagen_pl.storage.run_folder import RunFolder, is_main_process
from imagen_pl.training.private_api import start_wandb_offline

log = logging.getLogger(__name__)

_OUR_ID = "imagen_pl_run"  # tag that stores our run id in MLflow


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
        elif kind == "MLFlowLogger":
            _name_mlflow_run(arguments, name, run_id)
        elif kind in ("TensorBoardLogger", "CSVLogger"):
            arguments["name"], arguments["version"] = "", kind.removesuffix("Logger").lower()
    return loggers


def _name_mlflow_run(arguments: Namespace, name: str, run_id: str) -> None:
    """Name the MLflow run after our run, and continue the MLflow run of an earlier start.

    MLflow generates its own ids, so our id is stored as a tag.

    Raises:
        UserError: the package is missing, or the store cannot be opened.
    """
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ModuleNotFoundError:
        raise UserError("trainer.logger: MLFlowLogger needs a package: pip install mlflow") from None
    arguments["run_name"] = arguments.get("run_name") or name
    arguments["tags"] = {**(arguments.get("tags") or {}), _OUR_ID: run_id}
    if arguments.get("run_id") or not is_main_process():
        return
    store = arguments.get("tracking_uri") or f"file:{arguments['save_dir']}"
    if store.startswith("sqlite:///"):
        Path(store.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        client = MlflowClient(store)
        experiment = client.get_experiment_by_name(arguments["experiment_name"])
        if experiment is not None:
            wanted = f"tags.{_OUR_ID} = '{run_id}'"
            earlier = client.search_runs([experiment.experiment_id], wanted, max_results=1)
            arguments["run_id"] = earlier[0].info.run_id if earlier else None
    except MlflowException as error:
        raise UserError(f"MLflow, {store}: {one_line(str(error))}") from error


def open_wandb(loggers: Iterable[Logger]) -> None:
    """Start W&B if the run uses it, so that wrong settings stop the run at once.

    If its server cannot be reached, W&B records offline.

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
                    "W&B cannot be reached (%s): recording offline; upload with `wandb sync`",
                    one_line(str(error)),
                )
                start_wandb_offline(logger)
            except wandb.errors.Error as error:
                raise UserError(
                    f"W&B: {one_line(str(error))} (WANDB_MODE=offline keeps everything on this machine)"
                ) from error
