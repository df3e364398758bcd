"""Muon: matrices as torch's own, vectors as Adam, and convolutions as matrices."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.training.muon import Muon, orthogonal
from tests.helpers.training import SaveAt, adam, assert_same, tiny_gan, train, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stepped(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, steps: int = 3) -> Tensor:
    for seed in range(steps):
        parameter.grad = noise(*parameter.shape, seed=seed)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8)])
def test_orthogonalisation_brings_singular_values_near_one(
    shape: tuple[int, int],
) -> None:
    u, _, v = torch.linalg.svd(noise(*shape), full_matrices=False)
    matrix = (u * torch.logspace(0, -2, min(shape))) @ v

    found = orthogonal(matrix)

    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() < values.max() < 1.3
    assert nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.97
    assert not orthogonal(torch.zeros(shape)).any()


@pytest.mark.parametrize("shape", [(24, 100), (100, 24), (24, 36)])
@pytest.mark.parametrize("decades", [1, 8])
def test_gram_matrix_iteration_equals_newton_schulz(shape: tuple[int, int], decades: int) -> None:
    u, _, v = torch.linalg.svd(noise(*shape).double(), full_matrices=False)
    matrix = (u * torch.logspace(0, -decades, min(shape)).double()) @ v
    x = matrix if shape[0] < shape[1] else matrix.T
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x

    found = orthogonal(matrix.float())

    torch.testing.assert_close(found.double(), x if shape[0] < shape[1] else x.T, atol=1e-3, rtol=0)


def test_direction_is_reused_until_the_nth_step() -> None:
    weight, other = (nn.Parameter(torch.zeros(8, 12)) for _ in range(2))
    thrifty, thorough = Muon([weight], lr=0.1, every=3), Muon([other], lr=0.1)
    moves, wanted = [], []
    for seed in range(4):
        weight.grad, other.grad = noise(8, 12, seed=seed), noise(8, 12, seed=seed)
        before, before_other = weight.detach().clone(), other.detach().clone()
        thrifty.step()
        thorough.step()
        moves.append(weight.detach() - before)
        wanted.append(other.detach() - before_other)

    for step in (0, 1, 2):
        torch.testing.assert_close(moves[step], wanted[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(moves[3], wanted[3], atol=1e-6, rtol=0)
    assert (wanted[3] - wanted[0]).abs().max() > 0.01


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_matrices_are_updated_as_by_torch_s_muon(shape: tuple[int, int]) -> None:
    ours, theirs = (nn.Parameter(noise(*shape, seed=9)) for _ in range(2))
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}
    reference = torch.optim.Muon([theirs], weight_decay=0.0, adjust_lr_fn="match_rms_adamw", **settings)

    with torch.autocast("cpu"):
        moved, wanted = stepped(Muon([ours], **settings), ours), stepped(reference, theirs)

    torch.testing.assert_close(moved, wanted, atol=2e-3, rtol=0)
    assert (moved - noise(*shape, seed=9)).abs().mean() > 0.02


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (40, 4, 3, 3)])
def test_convolution_is_updated_as_the_matrix_of_its_outputs_in_any_memory_format(
    shape: tuple[int, ...],
) -> None:
    kernel, flat = nn.Parameter(noise(*shape, seed=9)), nn.Parameter(noise(*shape, seed=9).flatten(1))
    last = torch.channels_last
    kernel.data = kernel.data.to(memory_format=last)
    kernel.grad, flat.grad = noise(*shape).to(memory_format=last), noise(*shape).flatten(1)

    for parameter in (kernel, flat):
        Muon([parameter], lr=0.1).step()

    torch.testing.assert_close(kernel.detach().flatten(1), flat.detach(), atol=1e-6, rtol=0)


def test_step_has_a_root_mean_square_of_a_fifth_of_the_learning_rate() -> None:
    weight = nn.Parameter(torch.zeros(32, 64))
    moved = stepped(Muon([weight], lr=0.1), weight, steps=1)
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.15)


@pytest.mark.parametrize("shape", [(), (5,), (4, 1, 1), (1, 1, 8)])
def test_vectors_are_updated_as_by_adam_with_extra_axes_too(shape: tuple[int, ...]) -> None:
    ours, theirs = (nn.Parameter(noise(*shape, seed=9)) for _ in range(2))
    reference = torch.optim.Adam([theirs], lr=0.1, betas=(0.5, 0.9))

    moved = stepped(Muon([ours], lr=0.1, betas=(0.5, 0.9)), ours)

    torch.testing.assert_close(moved, stepped(reference, theirs))


def test_each_group_has_its_learning_rate_and_missing_gradients_are_skipped() -> None:
    slow, fast, resting = (nn.Parameter(torch.zeros(8, 8)) for _ in range(3))
    groups: list[dict[str, Any]] = [{"params": [slow, resting]}, {"params": [fast], "lr": 0.2}]
    both = Muon(groups, lr=0.1)
    slow.grad = fast.grad = noise(8, 8)

    both.step()

    torch.testing.assert_close(2 * slow, fast)
    assert not resting.any()
    assert resting not in both.state


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, "momentum 1.0 must be 0 or more and less than 1"),
        ({"betas": (0.0, 1.0)}, r"betas\[1\] 1.0 must be"),
        ({"lr": -1.0}, "lr -1.0 must be 0.0 or more"),
        ({"iterations": 0}, "iterations 0 must be 1 or more"),
        ({"every": 0}, "every 0 must be 1 or more"),
    ],
)
def test_invalid_settings_raise(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Muon: {message}"):
        Muon([nn.Parameter(noise(2, 2))], **settings)


def by_muon(every: int = 1) -> TextToImageGAN:
    return tiny_gan(generator_optimizer=partial(Muon, lr=1e-3, every=every))


@pytest.mark.parametrize(("precision", "every"), [("32-true", 1), ("32-true", 4), ("bf16-mixed", 1)])
def test_resumed_training_equals_uninterrupted_to_the_bit(tmp_path: Path, precision: Any, every: int) -> None:
    whole, first, second = (by_muon(every) for _ in range(3))
    before = weights_of(whole.generator)

    train(whole, 32, precision=precision)
    train(first, 16, [SaveAt({16: tmp_path / "half.ckpt"})], precision=precision)
    train(second, 32, ckpt_path=tmp_path / "half.ckpt", precision=precision)

    after = weights_of(whole.generator)
    assert_same(after, weights_of(second.generator))
    assert not torch.equal(before["grown.8.layers.0.first.weight"], after["grown.8.layers.0.first.weight"])
    held = torch.load(tmp_path / "half.ckpt", weights_only=True)["optimizer_states"][1]["state"].values()
    kinds = {tuple(sorted(state)) for state in held}
    matrices = ("momentum",) if every == 1 else ("age", "direction", "momentum")
    assert kinds == {matrices, ("exp_avg", "exp_avg_sq", "step")}


@pytest.mark.parametrize(("before", "after"), [("Adam", "Muon"), ("Muon", "Adam")])
def test_checkpoint_of_another_optimizer_raises(tmp_path: Path, before: str, after: str) -> None:
    kinds = {"Adam": lambda: tiny_gan(generator_optimizer=adam()), "Muon": by_muon}
    train(kinds[before](), 16, [SaveAt({16: tmp_path / "a.ckpt"})])

    with pytest.raises(UserError, match=f"another optimizer than {after}, which model.generator_optimizer"):
        train(kinds[after](), 32, ckpt_path=tmp_path / "a.ckpt")
