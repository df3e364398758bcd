"""Keeps a run going when a logger's service fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from lightning.pytorch.loggers import WandbLogger

log = logging.getLogger(__name__)

_warned: WeakSet[WandbLogger] = WeakSet()


@contextmanager
def survive_wandb(logger: object) -> Iterator[None]:
    """Do what is within; if W&B fails, warn once for each logger and go on.

    W&B raises its own errors, and those of the connection to the process that sends its data. Other loggers
    write files, and their errors, such as a full disk, are raised.

    Args:
        logger: the logger that is written to.
    """
    if not isinstance(logger, WandbLogger):
        yield
        return
    try:
        yield
    except Exception as error:
        if logger not in _warned:
            _warned.add(logger)
            log.warning(
                "W&B has failed (%s: %s): training goes on; metrics.csv has all values",
                type(error).__name__,
                (str(error).splitlines() or [""])[0],
            )
