"""Lets training continue when W&B or MLflow fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

log = logging.getLogger(__name__)

# By the logger's class: the service, and the packages whose errors mean that it fails.
_SERVICES = {
    WandbLogger: ("W&B", {"wandb"}),
    MLFlowLogger: ("MLflow", {"mlflow", "requests", "urllib3", "sqlalchemy"}),
}
_warned: WeakSet[object] = WeakSet()


@contextmanager
def survive_tracker(logger: object) -> Iterator[None]:
    """Log a warning, once for each logger, instead of raising an error of W&B or MLflow.

    These are the errors of their packages, and errors of the system, such as a lost connection. All errors of
    other loggers are raised.

    Args:
        logger: the logger that is written to.
    """
    services = [service for kind, service in _SERVICES.items() if isinstance(logger, kind)]
    if not services:
        yield
        return
    name, packages = services[0]
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in packages:
            raise
        if logger not in _warned:
            _warned.add(logger)
            log.warning(
                "%s has failed (%s: %s): training continues; metrics.csv has all values",
                name,
                type(error).__name__,
                (str(error).splitlines() or [""])[0],
            )
