"""Weights and descriptions of trained networks: read from checkpoints and releases, written as releases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.storage.checkpoint_io import read_checkpoint
from imagen_pl.storage.model_paths import DESCRIPTION, DISCRIMINATOR_WEIGHTS, WEIGHTS
from imagen_pl.storage.upgrade import upgrade_description

RELEASE_FORMAT = 1
_EMA = "ema.generator."
_DISCRIMINATOR = "discriminator."


class StoredDiscriminator(NamedTuple):
    """A trained discriminator in a checkpoint or a release.

    description: its class_path and init_args; None in a checkpoint that `imagen-pl fit` did not write.
    weights: its weights by parameter name.
    """

    description: dict[str, Any] | None
    weights: dict[str, Tensor]


def average_of(checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The generator's moving average in a checkpoint, by the generator's parameter names.

    Raises:
        UserError: the checkpoint has none.
    """
    state = checkpoint["state_dict"]
    weights = {name.removeprefix(_EMA): state[name] for name in state if name.startswith(_EMA)}
    if not weights:
        raise UserError(f"checkpoint {path} contains no moving average of a generator ({_EMA}*)")
    return weights


def read_release(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A release's description, with old names replaced by current ones, and its weights.

    Raises:
        UserError: a file is damaged, or a newer version wrote it.
    """
    return _read_description(folder), _read_tensors(folder / WEIGHTS)


def read_discriminator(file: Path) -> StoredDiscriminator | None:
    """The discriminator stored with a generator; None if there is none.

    Args:
        file: a path from `model_file`: a checkpoint, or the model.safetensors of a release.

    Raises:
        UserError: a file is damaged or missing.
    """
    if file.name != WEIGHTS:
        checkpoint = read_checkpoint(file, mmap=True)
        state = checkpoint["state_dict"]
        weights = {n.removeprefix(_DISCRIMINATOR): state[n] for n in state if n.startswith(_DISCRIMINATOR)}
        config = yaml.safe_load(checkpoint.get("config", "")) or {}
        return StoredDiscriminator(config.get("model", {}).get("discriminator"), weights) if weights else None
    description = _read_description(file.parent).get("discriminator")
    if description is None:
        return None
    weights_file = file.parent / DISCRIMINATOR_WEIGHTS
    if not weights_file.is_file():
        raise UserError(
            f"release {file.parent}: {DISCRIMINATOR_WEIGHTS} is missing, but {DESCRIPTION} lists a "
            "discriminator: copy the file there, or remove the entry"
        )
    return StoredDiscriminator(description, _read_tensors(weights_file))


def save_release(
    folder: Path,
    description: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    discriminator: StoredDiscriminator | None = None,
) -> None:
    """Write a release; each file is complete or not written at all.

    Args:
        folder: the output folder; created if it does not exist.
        description: the content of config.json, without dtype and discriminator.
        weights: weights of the generator.
        dtype: type in which floating-point weights are stored.
        discriminator: a discriminator to write too.

    Raises:
        UserError: the disk is full.
    """
    config_json = {n: value for n, value in description.items() if n != "discriminator"}
    config_json["dtype"] = str(dtype).removeprefix("torch.")
    files = {WEIGHTS: weights}
    if discriminator is not None:
        config_json["discriminator"] = discriminator.description
        files[DISCRIMINATOR_WEIGHTS] = discriminator.weights
    for name, tensors in files.items():
        stored = {
            # safetensors needs contiguous tensors, which channels_last ones are not.
            n: tensor.to(dtype if tensor.is_floating_point() else None).cpu().contiguous()
            for n, tensor in tensors.items()
        }
        with atomic_write(folder / name) as file:
            file.write(safetensors_bytes(stored, {"format": "pt"}))
    with atomic_write(folder / DESCRIPTION) as file:
        file.write((json.dumps(config_json, indent=2) + "\n").encode())


def _read_description(folder: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
        if description["format"] > RELEASE_FORMAT:
            raise UserError(f"release {folder} was written by a newer imagen_pl ({description['imagen_pl']})")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"release {folder} cannot be read: {type(error).__name__}: {error}") from error
    return upgrade_description(description)


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(
            f"release {file.parent} cannot be read: {file.name}: {type(error).__name__}: {error}"
        ) from error
