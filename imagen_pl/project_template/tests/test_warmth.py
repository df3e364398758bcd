"""The loss term."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from my_project.warmth import Warmth


def test_blue_images_cost_and_warm_ones_do_not() -> None:
    blue, red, grey = torch.zeros(3, 3, 4, 4).unbind()
    blue[2], red[0] = 1.0, 1.0
    images = torch.stack([blue, red, grey]).requires_grad_()
    inputs: Any = SimpleNamespace(images=images)  # the term reads nothing else
    unused: Any = None

    loss = Warmth()(unused, unused, inputs)

    assert loss.tolist() == [1.0, 0.0, 0.0]
    (gradient,) = torch.autograd.grad(loss.sum(), images)
    assert gradient[0, 2].mean() > 0  # less blue lowers it
    assert gradient[1].abs().sum() == 0
