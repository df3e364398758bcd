"""Minibatch standard deviation against loops (arXiv:1710.10196, section 3)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imagen_pl.models.discriminators.multiscale import append_stddev


def _slow(x: Tensor, group: int) -> Tensor:
    """One number an image: the deviation over its group at every place, then their mean."""
    b = x.shape[0]
    columns = b // group
    numbers = torch.zeros(b)
    for column in range(columns):
        members = [column + i * columns for i in range(group)]
        deviations = [
            torch.tensor([float(x[m].flatten()[place]) for m in members]).std(unbiased=False)
            for place in range(x[0].numel())
        ]
        for member in members:
            numbers[member] = torch.stack(deviations).mean()
    return numbers


@pytest.mark.parametrize(("b", "group", "used"), [(8, 4, 4), (6, 2, 2), (4, 4, 4), (6, 4, 6)])
def test_each_image_gets_the_stddev_of_its_group(b: int, group: int, used: int) -> None:
    """A batch of 6 has no groups of 4, so all 6 are one group."""
    x = torch.randn(b, 3, 2, 2, generator=torch.Generator().manual_seed(0))

    out = append_stddev(x, group)

    assert out.shape == (b, 4, 2, 2)
    assert torch.equal(out[:, :3], x)
    numbers = _slow(x, used)
    torch.testing.assert_close(out[:, 3], numbers[:, None, None].expand(b, 2, 2), rtol=1e-4, atol=1e-4)


def test_equal_images_have_stddev_zero() -> None:
    x = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).repeat(4, 1, 1, 1)

    assert append_stddev(x, 4)[:, 3].abs().max() < 1e-3
    assert append_stddev(x * torch.arange(4).view(4, 1, 1, 1), 4)[:, 3].min() > 0.1
