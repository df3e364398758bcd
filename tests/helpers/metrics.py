"""What tests of scores share: an extractor without weights, images of noise, and slow references."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from torch import Tensor

from imagen_pl.metrics.extractors import Extractor

CAPTIONS = [f"thing {i}, {'noto' if i % 2 else 'fluent'} style" for i in range(40)]


class Blocks(Extractor):
    """Mean colours of the four quarters of an image, -1 to 1.

    Attributes:
        seen: images that it was given.
    """

    name = "blocks"
    dim = 12

    def __init__(self) -> None:
        self.seen = 0

    def load(self) -> None:
        """It has no weights."""

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return F.adaptive_avg_pool2d(images.float() / 127.5 - 1, 2).flatten(1)


def images_of(count: int, seed: int, shift: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(shift, 256, (count, 3, 4, 4), generator=draw, dtype=torch.uint8)


def near(images: Tensor, seed: int = 5, spread: int = 30) -> Tensor:
    """The same, a little changed."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randint(-spread, spread + 1, images.shape, generator=draw)
    return (images.long() + noise).clamp(0, 255).to(torch.uint8)


def frechet_by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    """Equation 6 of arXiv:1706.08500, with the root of a matrix as scipy takes it."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    gap = a.mean(0) - b.mean(0)
    return float(gap @ gap + np.trace(first + second - 2 * sqrtm(first @ second).real))


def kernel_by_loop(a: np.ndarray, b: np.ndarray) -> float:
    """Equation 4 of arXiv:1801.01401, pair by pair."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    def within(rows: np.ndarray) -> float:
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        return sum(kernel(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    between = sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    return within(a) + within(b) - 2 * between
