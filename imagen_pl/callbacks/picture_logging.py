"""Sends pictures to the trackers of a run: W&B, TensorBoard, MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from imagen_pl.training.logger_faults import survive_tracker


def log_pictures(
    logger: Logger,
    name: str,
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    sheet: Image.Image,
    images_seen: int,
) -> None:
    """Log pictures at the current step; trackers show each panel with a slider over images seen.

    Args:
        logger: a tracker. Loggers without pictures, such as that of metrics.csv, are skipped.
        name: of the panel.
        pictures: logged to W&B, one by one.
        captions: one for each picture.
        sheet: the same pictures in a grid, logged to the other trackers.
        images_seen: the step.
    """
    if isinstance(logger, WandbLogger):
        import wandb

        images = [wandb.Image(p, caption=c) for p, c in zip(pictures, captions, strict=True)]
        with survive_tracker(logger):
            logger.experiment.log({name: images, "images_seen": images_seen})
    else:
        _log_sheet(logger, name, sheet, images_seen)


def log_table(
    logger: Logger,
    name: str,
    captions: Sequence[str],
    columns: Mapping[str, Sequence[Image.Image]],
    sheet: Image.Image,
    images_seen: int,
) -> None:
    """Log a table of pictures with a row for each caption: a table in W&B, a sheet in the other trackers.

    Args:
        logger: a tracker. Loggers without pictures are skipped.
        name: of the table.
        captions: of the rows.
        columns: pictures by the column's heading, in the order of the captions.
        sheet: the table as one picture.
        images_seen: the step.
    """
    if isinstance(logger, WandbLogger):
        import wandb

        cells = zip(*columns.values(), strict=True)
        rows = [[c, *map(wandb.Image, row)] for c, row in zip(captions, cells, strict=True)]
        table = wandb.Table(columns=["caption", *columns], data=rows)
        with survive_tracker(logger):
            logger.experiment.log({name: table, "images_seen": images_seen})
    else:
        _log_sheet(logger, name, sheet, images_seen)


def _log_sheet(logger: Logger, name: str, sheet: Image.Image, images_seen: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        import numpy as np

        logger.experiment.add_image(name, np.asarray(sheet), images_seen, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        with survive_tracker(logger):
            logger.experiment.log_image(logger.run_id, sheet, key=name, step=images_seen)
