"""What tests of the generator share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="module")
def latents() -> Tensor:
    """Four, for a generator whose latents have 5 entries."""
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
