"""Which modules hold the classes that YAML may name."""

from __future__ import annotations

import importlib
import pkgutil

# Packages whose classes YAML names.
_FAMILIES = (
    "models",
    "models.autoencoders",
    "models.generators",
    "models.discriminators",
    "models.text",
    "models.captioner",
    "models.pretrained",
    "losses",
    "data",
    "data.sources",
    "metrics",
)
# Modules of other packages that hold such classes.
_MODULES = ("training.muon",)


def import_all_parts() -> None:
    """Import every class that YAML may name, so that YAML and --help may leave out its module.

    A new file in one of these packages is found automatically.
    """
    for family in _FAMILIES:
        package = importlib.import_module(f"imagen_pl.{family}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    for name in _MODULES:
        importlib.import_module(f"imagen_pl.{name}")
