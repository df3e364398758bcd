"""Latents that depend on a seed and an index alone, not on earlier draws.

Axes: b batch, z latent.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def latents(indices: Iterable[int], seed: int, latent_dim: int) -> Float[Tensor, "b z"]:
    """Standard normal latents, each a function of the seed and its own index alone."""
    draw = torch.Generator()
    rows = [torch.randn(latent_dim, generator=draw.manual_seed(mix_seed(seed, i))) for i in indices]
    return torch.stack(rows)


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers; neighbouring numbers give unrelated seeds (splitmix64)."""
    mixed = 0
    for part in parts:
        mixed = (mixed + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1
