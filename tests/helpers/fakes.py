"""Stand-ins that need no weights: encoders and a score. YAML names them as tests.helpers.fakes.TinyText."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, distributed, nn

from imagen_pl.metrics.base import ImageMetric, Images
from imagen_pl.models.autoencoders.base import Autoencoder
from imagen_pl.models.pretrained.backbones import IMAGENET, Backbone, Normalisation
from imagen_pl.models.pretrained.dual_encoders import DualEncoder
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.types import TextFeatures


class TinyText(TextEncoder):
    """A token for each of the first 8 letters, its vector a hash of the letter; 16 wide.

    Attributes:
        encoded: every caption that was encoded, in order.
    """

    def __init__(self, dim: int = 16, max_tokens: int = 8) -> None:
        self.dim, self.max_tokens = dim, max_tokens
        self.fingerprint = f"tiny-{dim}-{max_tokens}"
        self.encoded: list[str] = []

    def encode(self, captions: Sequence[str], device: torch.device | str = "cpu") -> TextFeatures:
        self.encoded += captions
        # Half precision is what the cache keeps, so cached and fresh features are equal to the bit.
        rows = [[self._vector(letter) for letter in caption[: self.max_tokens]] for caption in captions]
        longest = max(1, *map(len, rows))
        tokens = torch.zeros(len(rows), longest, self.dim)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            mask[i, : len(row)] = True
            for j, vector in enumerate(row):
                tokens[i, j] = vector
        pooled = torch.stack([self._vector(caption) for caption in captions])
        return TextFeatures(tokens, mask, pooled).to(device)

    def _vector(self, text: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        return (
            torch.from_numpy(np.random.default_rng(seed).standard_normal(self.dim, np.float32)).half().float()
        )


class TinyDual(DualEncoder):
    """Images by a random linear map of their means over 4 x 4 squares, captions by TinyText; 16 wide."""

    name = "tiny"

    def _read(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3 * 16, 16)

    def _images(self, network: nn.Module, images: Tensor) -> Tensor:
        vectors: Tensor = network(nn.functional.adaptive_avg_pool2d(images, 4).flatten(1))
        return vectors

    def _text(self, network: nn.Module, caption: str) -> Tensor:
        return TinyText().encode([caption]).pooled


class TinyBackbone(Backbone):
    """Two maps of a random convolution, of 8 and 4 px."""

    name, size = "tiny", 16

    def _read(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Conv2d(3, 6, 3, padding=1)

    def _channels(self, network: nn.Module) -> tuple[int, ...]:
        return (6, 6)

    def _maps(self, network: nn.Module, x: Tensor) -> list[Tensor]:
        seen = network(x).relu()
        return [nn.functional.avg_pool2d(seen, factor) for factor in (2, 4)]

    @property
    def _normalisation(self) -> Normalisation:
        return IMAGENET


class MeanColour(ImageMetric):
    """How far the mean colour of the generated images is from the real ones', 0 to 255.

    Attributes:
        real_seen: real images that this process was given since training began.
        keys: the key of every real set that it was asked for, newest last.
    """

    def __init__(self) -> None:
        self.real_seen = 0
        self.keys: list[str] = []
        self._real_key: str | None = None
        self._sums = {real: torch.zeros(4, dtype=torch.float64) for real in (True, False)}

    @property
    def scores(self) -> tuple[str, ...]:
        return ("mean_colour",)

    def needs_real(self, key: str) -> bool:
        self.keys.append(key)
        if key != self._real_key:
            self._sums[True].zero_()
        return key != self._real_key

    def update(self, images: Images, captions: Sequence[str], *, real: bool) -> None:
        b, _, h, w = images.shape
        colours = images.double().sum((0, 2, 3)).cpu() / (h * w)
        self._sums[real] += torch.cat([colours, torch.tensor([b], dtype=torch.float64)])
        self.real_seen += b * real

    def compute(self, key: str) -> dict[str, float]:
        self._real_key = key
        real, fake = (self._mean(self._sums[real]) for real in (True, False))
        return {"mean_colour": float((real - fake).norm())}

    def reset(self) -> None:
        self._sums[False].zero_()

    @staticmethod
    def _mean(sums: Tensor) -> Tensor:
        """Over all processes."""
        sums = sums.clone()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
        return sums[:3] / sums[3]


class IdentityAutoencoder(Autoencoder):
    """Images are their own latents."""

    name, latent_channels, downsampling = "identity", 3, 1

    def _read(self) -> nn.Module:
        return nn.Linear(1, 1)

    def _encode(self, network: nn.Module, images: Tensor) -> Tensor:
        return images

    def _decode(self, network: nn.Module, latents: Tensor) -> Tensor:
        return latents
