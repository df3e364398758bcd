"""Reads checkpoints without running code from them, and renames entries of older checkpoints."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.storage.upgrade import upgrade_checkpoint


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Load a .ckpt file onto the CPU.

    Args:
        path: the file.
        mmap: map the tensors from the disk instead of reading them at once.

    Raises:
        UserError: there is no such file, it is damaged, or it is not a checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path}: there is no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap or None)
    except Exception as error:
        # Depending on the damage, torch raises RuntimeError, EOFError, KeyError, UnpicklingError, or OSError
        # with EINVAL (a seek to a negative offset).
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise UserError(
            f"checkpoint {path} cannot be read: it is damaged, truncated or not a checkpoint "
            f"({type(error).__name__}); use another checkpoint"
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "images_seen"} <= checkpoint.keys():
        raise UserError(f"checkpoint {path} was not written by imagen-pl: it lacks state_dict or images_seen")
    return upgrade_checkpoint(checkpoint)


def check_same_tensors(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | Path, advice: str
) -> None:
    """Raise UserError, naming the first tensors that differ, unless both have the same names and shapes.

    A tensor without rows in the networks may have any number of rows in the file, or be missing there.

    Args:
        expected: the tensors of the networks, by name.
        found: the tensors in the file, by name.
        path: the file.
        advice: how to fix the problem, for the message.
    """
    differ = []
    for name, tensor in expected.items():
        if tensor.shape[:1] == (0,):  # takes its length from the file
            if name in found and found[name].shape[1:] != tensor.shape[1:]:
                differ.append(
                    f"{name} is {tuple(found[name].shape)} in the file and {tuple(tensor.shape)} here"
                )
        elif name not in found:
            differ.append(f"{name} {tuple(tensor.shape)} is missing in the file")
        elif found[name].shape != tensor.shape:
            differ.append(f"{name} is {tuple(found[name].shape)} in the file and {tuple(tensor.shape)} here")
    differ += [
        f"{name} {tuple(found[name].shape)} is only in the file" for name in found if name not in expected
    ]
    if differ:
        more = f"; {len(differ) - 2} more differ" if len(differ) > 2 else ""
        raise UserError(f"{path} contains another architecture: {'; '.join(differ[:2])}{more}. {advice}")
