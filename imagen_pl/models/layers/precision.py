"""Computations that stay in float32 in networks that run in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is float64 already, as in tests of gradients."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
