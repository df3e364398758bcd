"""Training images are encoded once and their latents cached on disk: training then runs no encoder.

Axes: b batch, c channels of a latent, h w its places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16
from numpy.typing import NDArray
from torch import Tensor

from imagen_pl.data.batch_samplers import BatchPlan
from imagen_pl.data.dataset import RowImages
from imagen_pl.data.fingerprint import add_images
from imagen_pl.errors import UserError
from imagen_pl.models.autoencoders.base import Autoencoder
from imagen_pl.storage.atomic_files import atomic_write, cache_dir
from imagen_pl.types import width_of

# Increase it whenever a change of the code gives the same images other latents.
_VERSION = 1
_BATCH = 32


class LatentCache:
    """Latents of the rows of a data set from memory-mapped files, in half precision.

    It can be pickled for the loader's workers, each of which opens the files itself.

    Args:
        files: the file of each resolution, px.
    """

    def __init__(self, files: dict[int, Path]) -> None:
        self.files = files
        self._opened: dict[int, NDArray[np.float16]] = {}

    def __call__(self, rows: NDArray[np.int64], resolution: int) -> Float16[Tensor, "b c h w"]:
        """Latents of rows, on the CPU.

        Raises:
            UserError: the file is damaged, or was deleted in the meantime.
        """
        if resolution not in self._opened:
            path = self.files[resolution]
            try:
                self._opened[resolution] = np.load(path, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise UserError(
                    f"the cache of latents {path} cannot be read ({error}): delete it and start again"
                ) from error
        return torch.from_numpy(self._opened[resolution][rows])

    def __getstate__(self) -> dict[str, object]:
        return {"files": self.files, "_opened": {}}


def latent_file(
    autoencoder: Autoencoder, images: RowImages, resolution: int, folder: Path | None = None
) -> Path:
    """The file of the latents; its name changes with images, resolution and autoencoder.

    Args:
        autoencoder: encodes the images.
        images: the rows, which are always the same: neither flipped nor cropped at random.
        resolution: side of the images, px.
        folder: of the files; None takes the package's cache folder.
    """
    processing = images.processing
    settings = (
        _VERSION, autoencoder.fingerprint(), resolution, processing.fit, processing.background,
        processing.aspect_ratio,
    )  # fmt: skip
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(repr([row.name for row in images.rows]).encode())
    add_images(digest, images.source, images.rows)
    return (cache_dir() / "latents" if folder is None else folder) / f"{digest.hexdigest()[:32]}.npy"


def write_latents(
    file: Path,
    autoencoder: Autoencoder,
    images: RowImages,
    resolution: int,
    device: torch.device | str = "cpu",
    on_encoded: Callable[[int], object] = lambda count: None,
) -> None:
    """Encode all rows into a file, which is complete or not written at all.

    Args:
        file: from `latent_file`.
        autoencoder: encodes the images.
        images: the rows.
        resolution: side of the images, px.
        device: device to encode on.
        on_encoded: called with the number of images after each batch.

    Raises:
        UserError: no image can be decoded, or the disk is full.
    """
    height = resolution // autoencoder.downsampling
    width = width_of(height, images.processing.aspect_ratio)
    shape = (len(images), autoencoder.latent_channels, height, width)
    with atomic_write(file) as opened:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(opened, header)
        for start in range(0, len(images), _BATCH):
            rows = np.arange(start, min(start + _BATCH, len(images)), dtype=np.int64)
            batch = images[BatchPlan(rows, rows, resolution)].images.to(device)
            latents = autoencoder.encode(batch.float() / 127.5 - 1)
            opened.write(latents.to("cpu", torch.float16).contiguous().numpy().tobytes())
            on_encoded(len(rows))
