"""A captioner's weights in a file of their own, byte pairs included."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.models.captioner.model import Captioner
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.storage.model_paths import CAPTIONER_WEIGHTS


def save_weights(captioner: Captioner, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the file atomically; torch.float16 halves its size."""
    from safetensors.torch import save

    file = Path(folder) / CAPTIONER_WEIGHTS
    weights = {
        name: tensor.detach().to(dtype if tensor.is_floating_point() else None).cpu().contiguous()
        for name, tensor in _each_once(captioner).items()
    }
    with atomic_write(file) as opened:
        opened.write(save(weights, {"format": "pt"}))
    return file


def load_weights(captioner: Captioner, folder: str | Path) -> None:
    """Load the weights and byte pairs from a folder that `imagen-pl fit-captioner` wrote.

    Raises:
        UserError: the file is missing or damaged, or its weights have other shapes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(folder) / CAPTIONER_WEIGHTS
    if not file.is_file():
        raise UserError(
            f"captioner {folder}: there is no {CAPTIONER_WEIGHTS}; `imagen-pl fit-captioner --config "
            "configs/experiment/captioner.yaml` makes one"
        )
    try:
        found = load_file(file)
    except SafetensorError as error:
        raise UserError(f"captioner {file} cannot be read: it is damaged ({error})") from error
    own = _each_once(captioner)
    for name in dict.fromkeys((*own, *found)):
        if name not in own or name not in found or own[name].shape != found[name].shape:
            raise UserError(
                f"captioner {folder} has other sizes ({name} differs): give the settings that are in "
                f"{folder}/config.json"
            )
    captioner.load_state_dict(found, strict=False)  # shared tensors are stored once


def _each_once(captioner: Captioner) -> dict[str, Tensor]:
    return {**dict(captioner.named_parameters()), **dict(captioner.named_buffers())}
