"""A trained generator's weights and description, read from a checkpoint or a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.storage.model_paths import DESCRIPTION, WEIGHTS
from imagen_pl.storage.upgrade import upgrade_description

RELEASE_FORMAT = 1
_EMA = "ema.generator."


def average_of(checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The generator's moving average in a checkpoint, by the generator's parameter names.

    Raises:
        UserError: the checkpoint holds none.
    """
    state = checkpoint["state_dict"]
    weights = {name.removeprefix(_EMA): state[name] for name in state if name.startswith(_EMA)}
    if not weights:
        raise UserError(f"checkpoint {path} holds no moving average of a generator ({_EMA}*)")
    return weights


def read_release(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A release's description, with old names replaced by current ones, and its weights.

    Raises:
        UserError: a file is damaged, or a later version wrote it.
    """
    try:
        description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
        if description["format"] > RELEASE_FORMAT:
            raise UserError(f"release {folder} was written by a later imagen_pl ({description['imagen_pl']})")
        with safe_open(folder / WEIGHTS, framework="pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (json.JSONDecodeError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"release {folder} cannot be read: {type(error).__name__}: {error}") from error
    return upgrade_description(description), weights
