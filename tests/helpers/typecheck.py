"""Types and shapes in the networks' code, checked at every call in the tests."""

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

# Type checkers accept an int for a float, so this one accepts `Growth(8, 1)`.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_calls() -> None:
    """Call it before any of the modules is imported; programs that tests start run unchecked, as users do."""
    install_import_hook(list(_CHECKED), f"{__name__}.check")
