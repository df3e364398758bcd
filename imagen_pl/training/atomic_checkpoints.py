"""Makes Lightning read and write checkpoints with `imagen_pl.storage`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.storage.checkpoint_io import read_checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint to a temporary file, then renames it; loads tensors and plain values only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)
        _make_newest(Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def _make_newest(path: Path) -> None:
    """Make a file newer than the other checkpoints in its folder, in case the clock was set back.

    `RunFolder.newest_checkpoint` compares modification times.
    """
    others = [other.stat().st_mtime_ns for other in path.parent.glob("*.ckpt") if other != path]
    time_ns = max(others, default=0) + 1_000_000
    if path.stat().st_mtime_ns < time_ns - 1_000_000:
        os.utime(path, ns=(time_ns, time_ns))
