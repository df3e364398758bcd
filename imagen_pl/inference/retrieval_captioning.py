"""Captions by retrieval: an image gets the caption of the most similar training image.

On the emoji this has several times the CIDEr of the trained captioner (benchmarks/RESULTS.md), so the
released model uses it.

Axes: b batch, n training images, f features, k components.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from imagen_pl.data.transforms import decode
from imagen_pl.errors import UserError
from imagen_pl.inference.captioning import CaptioningPipeline, load_captioner
from imagen_pl.metrics.extractors import EfficientNetLite0
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.storage.model_paths import CAPTIONER, released

RETRIEVAL = "retrieval.safetensors"


class RetrievalCaptioner:
    """Captions images with captions of the nearest training images, in EfficientNet-Lite0's features.

    Args:
        captions: of each training image.
        features: of each training image: centred, projected on the components, of length 1.
        mean: subtracted from an image's features.
        components: directions that features are projected on.
        resolution: images are decoded to this size, px.
        side: size of the network's input, px.
    """

    def __init__(
        self,
        captions: Sequence[str],
        features: Float[Tensor, "n k"],
        mean: Float[Tensor, " f"],
        components: Float[Tensor, "f k"],
        resolution: int,
        side: int,
    ) -> None:
        self.captions, self.resolution = list(captions), resolution
        self.features, self.mean, self.components = features, mean, components
        self._network = EfficientNetLite0()
        self._network.side = side

    @classmethod
    def fit(
        cls, captions: Sequence[str], images: UInt8[Tensor, "n 3 h w"], components: int = 128, side: int = 128
    ) -> RetrievalCaptioner:
        """Compute features of captioned images; more components make a larger file.

        Raises:
            UserError: the network's weights are not available.
        """
        network = EfficientNetLite0()
        network.side = side
        return cls.from_features(captions, network(images), components, int(images.shape[-1]), side)

    @classmethod
    def from_features(
        cls,
        captions: Sequence[str],
        features: Float[Tensor, "n f"],
        components: int,
        resolution: int,
        side: int,
    ) -> RetrievalCaptioner:
        """From the network's features of the images."""
        mean = features.mean(0)
        directions = torch.linalg.svd(features - mean, full_matrices=False)[2][:components].T
        projected = F.normalize((features - mean) @ directions, dim=1)
        return cls(captions, projected, mean, directions.contiguous(), resolution, side)

    def to(self, device: str | torch.device) -> RetrievalCaptioner:
        """Move the tensors to another device."""
        self.features, self.mean, self.components = (
            x.to(device) for x in (self.features, self.mean, self.components)
        )
        return self

    def caption(self, image: bytes | Path, num_beams: int = 1) -> str:
        """The caption of the nearest training image. `num_beams` has no effect. Raises one of UNREADABLE."""
        return self.caption_batch(self.decode(image)[None])[0]

    def decode(self, image: bytes | Path) -> UInt8[Tensor, "c h w"]:
        """A picture as `caption_batch` takes it. Raises one of UNREADABLE."""
        return decode(image, self.resolution)

    def caption_batch(self, images: UInt8[Tensor, "b c h w"], num_beams: int = 1) -> list[str]:
        """The same for each of several images of its resolution. `num_beams` has no effect."""
        return [self.captions[row] for row in self._similarity(images).argmax(1).tolist()]

    def draw(self, image: bytes | Path, num_captions: int, seed: int = 0) -> list[str]:
        """The captions of the nearest training images, nearest first; the seed has no effect."""
        order = self._similarity(self.decode(image)[None])[0].argsort(descending=True)
        return list(dict.fromkeys(self.captions[row] for row in order.tolist()))[:num_captions]

    @torch.no_grad()
    def _similarity(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b n"]:
        features = self._network(images.to(self.features.device))
        return F.normalize((features - self.mean) @ self.components, dim=1) @ self.features.T

    def save(self, folder: Path) -> None:
        """Write retrieval.safetensors in half precision, with the captions in its header."""
        tensors = {"features": self.features, "mean": self.mean, "components": self.components}
        about = {
            "captions": json.dumps(self.captions, ensure_ascii=False),
            "resolution": str(self.resolution),
            "side": str(self._network.side),
        }
        with atomic_write(folder / RETRIEVAL) as file:
            half = {name: tensor.half().cpu().contiguous() for name, tensor in tensors.items()}
            file.write(safetensors_bytes(half, about))

    @classmethod
    def load(cls, folder: Path) -> RetrievalCaptioner:
        """Read the file of `save`. Raises UserError if it is damaged."""
        try:
            with safe_open(folder / RETRIEVAL, "pt") as opened:
                about = opened.metadata()
                tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
            captions = json.loads(about["captions"])
            return cls(captions, **tensors, resolution=int(about["resolution"]), side=int(about["side"]))
        except Exception as error:  # damaged files raise many kinds of errors
            raise UserError(
                f"captioner {folder}: {RETRIEVAL} cannot be read ({type(error).__name__})"
            ) from error


AnyCaptioner: TypeAlias = CaptioningPipeline | RetrievalCaptioner


def load_any_captioner(path: str | Path, device: str | torch.device | None = None) -> AnyCaptioner:
    """The captioner of a model: by retrieval if its folder has retrieval.safetensors, else the trained one.

    Args:
        path: as for `load_captioner`.
        device: None takes the first CUDA device if there is one.

    Raises:
        UserError: there is no such model, it is damaged, or it has no captioner.
    """
    for folder in (released(path) / CAPTIONER, released(path)):
        if (folder / RETRIEVAL).is_file():
            usual = "cuda" if torch.cuda.is_available() else "cpu"
            return RetrievalCaptioner.load(folder).to(usual if device is None else device)
    return load_captioner(path, device)
