"""Muon: matrices as torch's own, all else as Adam, and convolutions as matrices."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from imagen_pl.muon import Muon, orthogonal
from imagen_pl.system import TextToImageGAN
from tests.training import SaveAt, assert_same, tiny_system, train, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stepped(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, steps: int = 3) -> torch.Tensor:
    for seed in range(steps):
        parameter.grad = noise(*parameter.shape, seed=seed)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8)])
def test_all_singular_values_come_near_one_and_the_directions_stay(shape: tuple[int, int]) -> None:
    matrix = noise(*shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)

    found = orthogonal(matrix)

    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() < values.max() < 1.3
    assert nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.97


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_matrices_move_as_by_torch(shape: tuple[int, int]) -> None:
    ours, theirs = (nn.Parameter(noise(*shape, seed=9)) for _ in range(2))
    reference = torch.optim.Muon(
        [theirs], lr=0.1, momentum=0.9, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
    )

    torch.testing.assert_close(
        stepped(Muon([ours], lr=0.1, momentum=0.9), ours), stepped(reference, theirs), atol=2e-3, rtol=0
    )


def test_a_convolution_is_the_matrix_of_its_outputs() -> None:
    """However it lies in memory, and whatever else is worked out with it."""
    kernel, flat, other = (
        nn.Parameter(noise(6, 4, 3, 3)),
        nn.Parameter(noise(6, 36)),
        nn.Parameter(noise(6, 36)),
    )
    kernel.data = kernel.data.to(memory_format=torch.channels_last)
    both = Muon([kernel, other], lr=0.1)
    other.grad = noise(6, 36, seed=7)

    moved = stepped(both, kernel, steps=1)

    alone = Muon([flat], lr=0.1)
    flat.grad = noise(6, 4, 3, 3).reshape(6, 36)
    alone.step()
    torch.testing.assert_close(moved.reshape(6, 36), flat.detach(), atol=2e-3, rtol=0)


def test_a_step_is_as_large_as_adams() -> None:
    weight = nn.Parameter(torch.zeros(32, 64))
    assert float(stepped(Muon([weight], lr=0.1), weight, steps=1).square().mean().sqrt()) == pytest.approx(
        0.1 * 0.2, rel=0.15
    )


def test_biases_move_as_by_adam() -> None:
    ours, theirs = (nn.Parameter(noise(5, seed=9)) for _ in range(2))
    adam = torch.optim.Adam([theirs], lr=0.1, betas=(0.5, 0.9))

    torch.testing.assert_close(stepped(Muon([ours], lr=0.1, betas=(0.5, 0.9)), ours), stepped(adam, theirs))


def test_settings_that_make_no_sense_are_told() -> None:
    with pytest.raises(ValueError, match=r"Muon: momentum 1\.5 must be 0 or more and less than 1"):
        Muon([nn.Parameter(noise(2, 2))], momentum=1.5)


def test_a_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    def system() -> TextToImageGAN:
        return tiny_system(generator_optimizer=partial(Muon, lr=1e-3))

    whole, first, second = system(), system(), system()
    before = deepcopy(weights_of(whole.generator))
    train(whole, 96)
    train(first, 48, [SaveAt({48: tmp_path / "half.ckpt"})])
    train(second, 96, ckpt_path=tmp_path / "half.ckpt")

    assert_same(weights_of(whole), weights_of(second))
    after = weights_of(whole.generator)
    assert any(not torch.equal(before[name], after[name]) for name in before)
