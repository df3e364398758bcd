"""Caches statistics of the real images on disk: they are the same in every validation."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, distributed

from imagen_pl.errors import UserError
from imagen_pl.metrics.distributed import process_count, process_rank
from imagen_pl.metrics.extractors import Extractor
from imagen_pl.storage.atomic_files import atomic_write, cache_dir

log = logging.getLogger(__name__)


class RealStatistics:
    """Tensors by name, one file for each set of real images. Only the first process reads and writes files.

    Args:
        extractor: network that computes the features.
        what: kind of statistics and the settings that they depend on; part of the file's key.
    """

    def __init__(self, extractor: Extractor, what: str) -> None:
        self.extractor, self.what = extractor, what

    def read(self, key: str, load: Callable[[dict[str, Tensor]], None]) -> bool:
        """Pass the file's tensors to `load`, on the first process.

        Returns:
            on every process, whether the file exists and is intact; if not, compute the statistics again.
        """
        found = [process_rank() == 0 and self._file(key).is_file() and self._read(self._file(key), load)]
        if process_count() > 1:
            distributed.broadcast_object_list(found, src=0)
        return found[0]

    def write(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Save the first process's tensors; failure is only a warning, since they can be computed again."""
        if process_rank() == 0:
            try:
                with atomic_write(self._file(key)) as file:
                    torch.save(tensors, file)
            except (OSError, UserError) as error:
                log.warning("statistics of real images are not cached: %s", error)

    @staticmethod
    def _read(file: Path, load: Callable[[dict[str, Tensor]], None]) -> bool:
        try:
            load(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:  # the type depends on where the file is damaged
            log.warning("%s is damaged (%s): computing it again", file, type(error).__name__)
            return False
        return True

    def _file(self, key: str) -> Path:
        digest = hashlib.sha256(f"{self.extractor.fingerprint} {key} {self.what}".encode()).hexdigest()[:24]
        return cache_dir() / "real" / f"{self.extractor.name}-{digest}.pt"
