"""Networks and data sources built by their class_path, from a description in a checkpoint or a release."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.storage.checkpoint_io import check_same_tensors

_ADVICE = "Its configuration, or this package's code, has changed since."


def build(kind: Any, description: Any, path: str | Path, name: str) -> Any:
    """An object from its class_path and init_args, with every argument checked against its type.

    Args:
        kind: the class, or classes, that it must be of, as `Generator`.
        description: a mapping of class_path and init_args, or a class path.
        path: of the file or folder that holds the description; for the message.
        name: what it is, as "generator"; for the message.

    Raises:
        UserError: it is missing, names no such class, or has an argument that the class does not take.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    if _short_names(description):
        from imagen_pl.training.class_paths import import_all_parts

        import_all_parts()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, name)
    try:
        config = parser.parse_object({name: description})
    except (ArgumentError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: its {name} cannot be built: {reason}") from error
    return parser.instantiate_classes(config)[name]


def _short_names(description: Any) -> bool:
    """Whether a class is named without its module, which is found only once every part is imported."""
    if not isinstance(description, Mapping):
        return isinstance(description, str) and "." not in description
    nested = (value for value in description.values() if isinstance(value, Mapping))
    return "." not in str(description.get("class_path", ".")) or any(map(_short_names, nested))


def fill(network: nn.Module, weights: Mapping[str, Tensor], path: str | Path, prefix: str = "") -> None:
    """Load weights into a network; those in half precision are widened.

    Args:
        network: the network.
        weights: by name; those without the prefix are left out.
        path: of their file; for the message.
        prefix: of the names, as "discriminator.".

    Raises:
        UserError: names or shapes differ.
    """
    own = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
    check_same_tensors(network.state_dict(), own, path, _ADVICE)
    network.load_state_dict(own)


def stored_config(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """The configuration in a checkpoint.

    Raises:
        UserError: there is none.
    """
    if "config" not in checkpoint:
        raise UserError(
            f"checkpoint {path} does not say which networks it holds: it was not written by `imagen-pl fit`. "
            "Build the TextToImageGAN as for training, and open it in Python with "
            "imagen_pl.load(path, module=gan)"
        )
    config: dict[str, Any] = yaml.safe_load(checkpoint["config"]) or {}
    return config


def default_device(device: str | torch.device | None) -> str | torch.device:
    """The device; None means the first CUDA device if there is one, else the CPU."""
    if device is not None:
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
