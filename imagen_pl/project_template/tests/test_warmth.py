"""The loss term."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from my_project.warmth import Warmth


def test_only_blue_images_have_a_loss() -> None:
    blue, red, grey = torch.zeros(3, 3, 4, 4).unbind()
    blue[2], red[0] = 1.0, 1.0
    images = torch.stack([blue, red, grey]).requires_grad_()
    inputs: Any = SimpleNamespace(images=images)  # the only field that the loss reads
    unused: Any = None

    loss = Warmth()(unused, unused, inputs)

    assert loss.tolist() == [1.0, 0.0, 0.0]
    (gradient,) = torch.autograd.grad(loss.sum(), images)
    assert gradient[0, 2].mean() > 0  # less blue lowers the loss
    assert gradient[1].abs().sum() == 0
