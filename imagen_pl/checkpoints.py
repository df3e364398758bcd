"""Checkpoints on disk: written whole or not at all, and read without running code."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from imagen_pl.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name once it is complete and on the disk; until then the old one stays.

    Raises:
        UserError: the disk is full; the file of that name, if any, is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if _disk_is_full(error):
            kept = "the one before it is whole" if path.exists() else "nothing was written"
            raise UserError(
                f"cannot write {path}: no space left on the disk ({kept}); free some, then go on"
            ) from error
        raise


def _disk_is_full(error: BaseException | None) -> bool:
    """Torch's writer turns the system's error into its own, so look at what led to it too."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint beside the old one, then renames it; reads tensors and plain values only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        with written_whole(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """What a .ckpt holds, on the CPU.

    Args:
        path: the file.
        mmap: leave the tensors on the disk until they are used.

    Raises:
        UserError: there is no such file, it is damaged, or it is not a checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path}: there is no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap or None)
    except OSError:
        raise
    except Exception as error:
        # Torch raises RuntimeError, EOFError, KeyError or UnpicklingError, by where the damage is.
        raise UserError(
            f"checkpoint {path} cannot be read: it is damaged, cut off, or not a checkpoint "
            f"({type(error).__name__}); use another one"
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "images_seen"} <= checkpoint.keys():
        raise UserError(f"checkpoint {path} is not one of imagen-pl: it has no state_dict and images_seen")
    return checkpoint


def check_same_tensors(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | Path, advice: str
) -> None:
    """Raise UserError, naming the first tensors that differ, unless both have the same names and shapes.

    Args:
        expected: what the networks have.
        found: what the file holds.
        path: the file.
        advice: how to mend it.
    """
    differ = []
    for name, tensor in expected.items():
        if name not in found:
            differ.append(f"{name} {tuple(tensor.shape)} is missing there")
        elif found[name].shape != tensor.shape:
            differ.append(f"{name} is {tuple(found[name].shape)} there and {tuple(tensor.shape)} here")
    differ += [f"{name} {tuple(found[name].shape)} is not here" for name in found if name not in expected]
    if differ:
        more = f"; {len(differ) - 2} more differ" if len(differ) > 2 else ""
        raise UserError(f"{path} holds another architecture: {'; '.join(differ[:2])}{more}. {advice}")
