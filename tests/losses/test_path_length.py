"""Path length regularization: its identities, its interval, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.losses import path_length
from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.losses.base import LossInputs
from imagen_pl.losses.path_length import PathLength, path_lengths
from imagen_pl.models.discriminators.base import ImageFeatures
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.mlp import MLPGenerator
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.schedules import Stage
from imagen_pl.types import Growth
from tests.helpers.networks import (
    TEXT_DIM,
    awaken,
    small_discriminator,
    small_generator,
    text_features,
)
from tests.helpers.training import SaveAt, assert_same, tiny_gan, train, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")
EIGHT = (Stage(8, kimg=10.0, batch_size=8),)


class LinearGenerator(StyleGenerator):
    """The style is the latent, and the image of 4 px is A w."""

    def __init__(self, matrix: Tensor) -> None:
        nn.Module.__init__(self)
        self.matrix = nn.Parameter(matrix)
        self.resolutions, self.latent_dim, self.text_dim = (4,), matrix.shape[1], TEXT_DIM

    def style(self, z: Tensor, *_: Any, **__: Any) -> Tensor:
        return z.requires_grad_()

    def draw(self, style: Tensor, *_: Any, **__: Any) -> Tensor:
        return (style[:, 0] @ self.matrix.T).unflatten(1, (3, 4, 4))


def given(generator: Generator, count: int) -> LossInputs:
    images = torch.zeros(count, 3, 4, 4)
    z = torch.zeros(count, generator.latent_dim)
    features = ImageFeatures({}, torch.zeros(count, 6))
    return LossInputs(images, features, text_features(count), Growth(4), generator=generator, latents=z)


def test_mean_square_of_the_lengths_is_the_frobenius_norm_of_a_linear_generator() -> None:
    """E ||A^T y||^2 = ||A||_F^2 / (h w), as y has a variance of 1 / (h w)."""
    torch.manual_seed(0)
    matrix = torch.randn(48, 6)

    lengths = path_lengths(LinearGenerator(matrix), torch.randn(4000, 6), text_features(4000), Growth(4))

    assert lengths.square().mean().item() == pytest.approx(matrix.square().sum().item() / 16, rel=0.05)


def test_lengths_are_those_of_the_full_jacobian() -> None:
    torch.manual_seed(0)
    generator = small_generator({4: 8, 8: 8}).double()
    awaken(generator)
    text, z, growth = text_features(1, dtype=torch.float64), torch.randn(1, 5).double(), Growth(8)
    torch.manual_seed(1)
    length = path_lengths(generator, z, text, growth)

    torch.manual_seed(1)
    noise = torch.randn(1, 3, 8, 8, dtype=torch.float64) / 8
    styles = generator.style(z, text).detach()[:, None].repeat(1, 2, 1)
    jacobian = torch.autograd.functional.jacobian(lambda w: generator.draw(w, text, growth), styles)
    slopes = torch.einsum("bchw,bchwins->ns", noise, jacobian)
    torch.testing.assert_close(length[0], slopes.square().sum(1).mean().sqrt())


def test_blocks_that_have_not_grown_do_not_count() -> None:
    generator = small_generator({4: 8, 8: 8, 16: 8})
    awaken(generator)
    text, z = text_features(2), torch.randn(2, 5)
    torch.manual_seed(1)
    length = path_lengths(generator, z, text, Growth(4))

    torch.manual_seed(1)
    noise = torch.randn(2, 3, 4, 4) / 4
    style = generator.style(z, text).detach().requires_grad_()
    (slope,) = torch.autograd.grad((generator.draw(style, text, Growth(4)) * noise).sum(), style)
    torch.testing.assert_close(length, slope.norm(dim=1))


def test_frozen_mapping_and_compiled_blocks() -> None:
    """As under blockwise training, and with model.compile."""
    lengths = []
    for compiled in (False, True):
        generator = small_generator({4: 8, 8: 8})
        awaken(generator)
        generator.mapping.requires_grad_(False)
        if compiled:
            for block in generator.blocks().values():
                block.compile(backend="aot_eager")
        torch.manual_seed(1)
        term, inputs = PathLength(share=1.0), given(generator, 4)
        inputs.text, inputs.growth = text_features(4), Growth(8)
        loss = term(small_discriminator(), NonSaturating(), inputs)
        loss.mean().backward()
        assert all(p.grad is None for p in generator.mapping.parameters())
        assert any(p.grad is not None and p.grad.any() for p in generator.parameters())
        lengths.append(term.mean_length)
    torch.testing.assert_close(*lengths)


@pytest.mark.parametrize("lengths", [torch.tensor([3.0, 3.0]), torch.tensor([1.0, 5.0])])
def test_penalty_is_the_squared_distance_to_the_mean_length(
    lengths: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is zero where all lengths equal their mean."""
    monkeypatch.setattr(path_length, "path_lengths", lambda *_: lengths)
    term = PathLength(decay=1.0, share=1.0)

    loss = term(small_discriminator(), NonSaturating(), given(LinearGenerator(torch.eye(48)), 2))

    assert term.mean_length == 3
    torch.testing.assert_close(loss, (lengths - 3).square())


def test_moving_average_follows_the_lengths() -> None:
    torch.manual_seed(0)
    term, generator = PathLength(decay=0.1, share=1.0), LinearGenerator(torch.randn(48, 6))
    judge = small_discriminator()
    torch.manual_seed(1)
    for _ in range(100):
        term(judge, NonSaturating(), given(generator, 16))

    lengths = path_lengths(generator, torch.randn(2000, 6), text_features(2000), Growth(4))
    assert term.mean_length.item() == pytest.approx(lengths.mean().item(), rel=0.1)


def test_training_on_the_penalty_makes_a_linear_generator_orthogonal() -> None:
    """The lengths vary least if all singular values of A are equal (appendix C)."""
    torch.manual_seed(0)
    matrix = torch.linalg.qr(torch.randn(48, 4)).Q * torch.tensor([8.0, 4.0, 2.0, 1.0])
    generator, term, judge = LinearGenerator(matrix), PathLength(decay=0.1, share=1.0), small_discriminator()
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        term(judge, NonSaturating(), given(generator, 64)).mean().backward()
        optimizer.step()

    largest, *_, smallest = torch.linalg.svdvals(generator.matrix.detach()).tolist()
    assert largest / smallest < 3  # 8 at first


@pytest.mark.parametrize(("every", "steps"), [(1, [*range(8)]), (4, [0, 4])])
def test_it_is_computed_at_every_nth_generator_step_so_many_times_as_strong(
    every: int, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    term = PathLength(every=every)
    seen: list[int] = []
    gan = tiny_gan(losses=[term], discriminator_steps=2)
    compute = term.forward

    def counted(*inputs: Any) -> Tensor:
        seen.append(gan.images_seen // 16)
        return compute(*inputs)

    monkeypatch.setattr(term, "forward", counted)
    train(gan, 96, stages=EIGHT)
    assert seen == steps

    monkeypatch.setattr(term, "forward", lambda *a: torch.ones(8))
    judge, adversarial = gan.discriminator, gan.adversarial
    losses, _ = gan.losses.weighted("generator", judge, adversarial, given(gan.generator, 8), 0)
    torch.testing.assert_close(losses["g_path_length"], 2.0 * every * torch.ones(8))


def test_a_resumed_run_has_its_average(tmp_path: Path) -> None:
    whole, half, again = (tiny_gan(losses=[PathLength(every=2)]) for _ in range(3))
    train(whole, 128, stages=EIGHT)
    train(half, 64, [SaveAt({64: tmp_path / "half.ckpt"})], stages=EIGHT)
    train(again, 128, ckpt_path=tmp_path / "half.ckpt", stages=EIGHT)

    assert_same(weights_of(again), weights_of(whole))
    averages = [gan.losses.state_dict()["0.mean_length"] for gan in (whole, again)]
    assert averages[0] > 0
    assert torch.equal(*averages)


def test_wrong_settings_raise_before_the_first_batch() -> None:
    with pytest.raises(UserError, match="PathLength needs a generator with a style, StyleGenerator, not MLP"):
        PathLength().check_generator(MLPGenerator(8, [8]))
    with pytest.raises(ValueError, match=r"PathLength.share 0 must be above 0 and at most 1"):
        PathLength(share=0)
    with pytest.raises(ValueError, match=r"PathLength.every 0 must be 1 or more"):
        PathLength(every=0)
