"""The gradient from discriminator to generator: its size, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.losses.base import LossInputs, LossTerm
from imagen_pl.schedules import Stage
from imagen_pl.training.gradient_normalization import GradientNormalization
from tests.helpers.training import tiny_gan, train

pytestmark = pytest.mark.usefixtures("one_thread")
EIGHT = (Stage(8, kimg=10.0, batch_size=8),)


def gradient_of(term: GradientNormalization, steepness: float, rows: int = 4, scale: float = 1.0) -> Tensor:
    images = torch.zeros(rows, 3, 2, 2, requires_grad=True)
    slopes = torch.arange(1.0, rows + 1)[:, None, None, None]
    loss = steepness * (slopes * term(images, scale)).sum((1, 2, 3)).mean()
    (loss * scale).backward()
    assert images.grad is not None
    return images.grad


@pytest.mark.parametrize("steepness", [1e-3, 1.0, 1e4])
def test_gradient_has_the_same_size_however_steep_the_loss_is(steepness: float) -> None:
    found = gradient_of(GradientNormalization(size=2.0), steepness)

    norms = 4 * found.flatten(1).norm(dim=1)
    assert norms.square().mean().sqrt() == pytest.approx(2.0, rel=1e-5)
    assert (norms / norms[0]).tolist() == pytest.approx([1.0, 2.0, 3.0, 4.0])


def test_size_follows_a_moving_average() -> None:
    term = GradientNormalization(decay=0.75)
    found = [float(4 * gradient_of(term, steepness).norm() / 2) for steepness in (1.0, 1.0, 3.0)]

    average, weights = 0.0, 0.0
    for step, squared in enumerate((1.0, 1.0, 9.0)):
        average, weights = 0.75 * average + 0.25 * squared, 0.75 * weights + 0.25
        assert found[step] == pytest.approx((squared / (average / weights)) ** 0.5, rel=1e-5)


def test_scaled_losses_give_the_same() -> None:
    whole = gradient_of(GradientNormalization(), 1.0)
    scaled = gradient_of(GradientNormalization(), 1.0, scale=1024.0)
    torch.testing.assert_close(scaled, 1024 * whole)


def test_gradient_that_is_not_finite_leaves_the_average_alone() -> None:
    term, calm = GradientNormalization(), GradientNormalization()
    for each in (term, calm):
        gradient_of(each, 1.0)
    assert not torch.isfinite(gradient_of(term, float("inf"))).any()
    torch.testing.assert_close(gradient_of(term, 3.0), gradient_of(calm, 3.0))


def test_small_gradients_in_float16_stay_finite() -> None:
    gradient = torch.full((2, 3, 2, 2), 1e-7, dtype=torch.float16)
    found = GradientNormalization().normalized(gradient, 1.0)
    assert found.dtype == torch.float16
    assert 2 * found.float().flatten(1).norm(dim=1)[0] == pytest.approx(1.0, rel=1e-2)


class OnImages(LossTerm):
    """Reads the images themselves."""

    name = "on_images"

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)

    def forward(self, discriminator: Any, adversarial: Any, inputs: LossInputs) -> Tensor:
        return inputs.images.sum((1, 2, 3))


class AtImages(Callback):
    """The gradient at the generator's output, in the order of the batches."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        def watch(module: Any, given: Any, images: Tensor) -> None:
            if images.requires_grad:
                images.register_hook(lambda gradient: self.norms.append(float(gradient.norm())))

        pl_module.generator.register_forward_hook(watch)


@pytest.mark.parametrize(("losses", "norm"), [([], 1e-3 / 8**0.5), ([OnImages()], (3 * 64 / 8) ** 0.5)])
def test_losses_on_the_images_themselves_keep_their_gradient(losses: list[LossTerm], norm: float) -> None:
    """Of eight images of 8 px: a loss through the discriminator, and one with the gradient 1/8 everywhere."""
    found = AtImages()
    gan = tiny_gan(gradient_normalization=GradientNormalization(decay=0.0, size=1e-3), losses=losses)
    train(gan, 24, [found], stages=EIGHT)

    assert found.norms == pytest.approx([norm] * 3, rel=1e-2)


def test_accumulated_batches_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"gradient_normalization measures whole batches: set accumulate 2 to 1"
    ):
        tiny_gan(gradient_normalization=GradientNormalization(), accumulate=2)


def test_only_the_generator_s_gradient_changes() -> None:
    """The discriminator's first step is the same to the bit."""

    def weights(**settings: Any) -> dict[str, Tensor]:
        gan = tiny_gan(**settings)
        train(gan, 8, stages=EIGHT)
        return {name: p.detach().clone() for name, p in gan.named_parameters() if not name.startswith("ema")}

    plain, normalised = weights(), weights(gradient_normalization=GradientNormalization(size=1e-6))
    for name, before in plain.items():
        if name.startswith("discriminator"):
            torch.testing.assert_close(normalised[name], before, rtol=0, atol=0)
    generator = [name for name in plain if name.startswith("generator")]
    assert any(not torch.equal(plain[name], normalised[name]) for name in generator)


def test_resumed_training_keeps_the_average(tmp_path: Any) -> None:
    def gan() -> Any:
        return tiny_gan(gradient_normalization=GradientNormalization())

    def weights(module: Any) -> list[Tensor]:
        return [p.detach().clone() for p in module.parameters()]

    whole = gan()
    train(whole, 32, stages=EIGHT)
    trainer = train(gan(), 16, stages=EIGHT)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = gan()
    train(resumed, 32, stages=EIGHT, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.gradient_normalization.steps == 4
    for mine, theirs in zip(weights(resumed), weights(whole), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_settings_out_of_range_are_reported() -> None:
    with pytest.raises(UserError, match=r"GradientNormalization.decay 1.0 must be"):
        GradientNormalization(decay=1.0)
    with pytest.raises(UserError, match=r"GradientNormalization.size 0 must be more than 0"):
        GradientNormalization(size=0)
