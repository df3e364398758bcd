"""Types and shapes of the networks' code, checked at every call that a test makes."""

from __future__ import annotations

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

_CHECKED = (
    "imagen_pl.types",
    "imagen_pl.schedules",
    "imagen_pl.training.ema",
    "imagen_pl.models.layers",
    "imagen_pl.models.generators",
    "imagen_pl.models.discriminators",
    "imagen_pl.losses",
    "imagen_pl.models.text.adapter",
    "imagen_pl.models.augment",
)

# An int is a fine float to a type checker, so `Growth(8, 1)` is to this one too.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_calls() -> None:
    """Call it before any of the modules is imported; programs that tests start run unchecked, as users do."""
    install_import_hook(list(_CHECKED), f"{__name__}.check")
