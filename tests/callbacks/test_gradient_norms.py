"""GradientNorms: what it logs, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imagen_pl.callbacks.gradient_norms import GradientNorms
from imagen_pl.errors import UserError
from imagen_pl.losses.base import LossInputs, LossTerm
from imagen_pl.losses.text_matching import MismatchedCaptions
from imagen_pl.schedules import Stage
from imagen_pl.training.gradient_normalization import GradientNormalization
from tests.helpers.training import Remember, tiny_gan, train

pytestmark = pytest.mark.usefixtures("one_thread")
EIGHT = (Stage(8, kimg=10.0, batch_size=8),)


class Sum(LossTerm):
    """Its gradient is 1 at every pixel."""

    name = "sum"

    def forward(self, discriminator: Any, adversarial: Any, inputs: LossInputs) -> Tensor:
        return inputs.images.sum((1, 2, 3))


class OfLatents(LossTerm):
    """Does not read the images, and draws random numbers."""

    name = "of_latents"

    def forward(self, discriminator: Any, adversarial: Any, inputs: LossInputs) -> Tensor:
        assert inputs.latents is not None
        return inputs.latents.sum(1) * 0 + torch.rand(len(inputs.latents))


def weights(callbacks: list[Any], **settings: Any) -> list[Tensor]:
    losses = [Sum(0.0, 0.5), OfLatents(0.0, 1.0), MismatchedCaptions(similar=0.5)]
    gan = tiny_gan(losses=losses, gradient_normalization=GradientNormalization())
    train(gan, 48, callbacks, stages=EIGHT, log_every_n_steps=1, **settings)
    return [parameter.detach().clone() for parameter in [*gan.parameters(), *gan.buffers()]]


def test_norm_of_each_weighted_loss_is_logged() -> None:
    logger = Remember()
    weights([GradientNorms(every_kimg=0.016)], logger=logger)

    found = logger.column("train/gradient_g_sum")
    assert sorted(found) == [24, 32, 40, 48]  # from the batch after the first measurement on
    assert list(found.values()) == pytest.approx([0.5 * (3 * 64) ** 0.5] * 4)
    assert min(logger.column("train/gradient_g_loss").values()) > 0
    assert not logger.column("train/gradient_g_of_latents")


def test_training_is_the_same_to_the_bit(tmp_path: Path) -> None:
    for one, other in zip(weights([]), weights([GradientNorms(every_kimg=0.008)]), strict=True):
        assert torch.equal(one, other)


def test_interval_out_of_range_is_reported() -> None:
    with pytest.raises(UserError, match=r"GradientNorms.every_kimg 0 must be more than 0"):
        GradientNorms(every_kimg=0)
