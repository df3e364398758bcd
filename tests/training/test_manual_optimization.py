"""Manual optimization stops before a loss or gradient that is not finite reaches the weights."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from imagen_pl.errors import TrainingStopped
from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.losses.gradient_penalties import R1, Images, LogitFn, Penalty
from imagen_pl.schedules import Stage
from imagen_pl.types import TextFeatures
from tests.helpers.training import (
    tiny_data,
    tiny_gan,
    tiny_trainer,
)

FADING = (Stage(8, kimg=0.016, batch_size=8), Stage(16, kimg=1.0, batch_size=8, fade_kimg=0.032))


class Spoilt(NonSaturating):
    """From its nth call on, a loss that is not finite."""

    def __init__(self, side: str, value: float, calls: int) -> None:
        self.side, self.value, self.left = side, value, calls

    def spoil(self, side: str, loss: Tensor) -> Tensor:
        if side != self.side:
            return loss
        self.left -= 1
        return loss + self.value if self.left < 0 else loss

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return self.spoil("d", super().discriminator(real_logits, fake_logits))

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        return self.spoil("g", super().generator(fake_logits, real_logits))


class Cliff(Penalty):
    """A finite value whose gradient is not: the root of zero."""

    name = "cliff"

    def __call__(self, logit_fn: LogitFn, real: Images, fake: Images, text: TextFeatures) -> Tensor:
        return (logit_fn(real, text).mean(1) * 0).sqrt()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adversarial": Spoilt("d", float("nan"), 5)}, r"d_loss became nan at 40 images seen \(16 px\)"),
        ({"adversarial": Spoilt("g", float("inf"), 3)}, r"g_loss became inf at 24 images seen \(16 px\)"),
        (
            {"adversarial": Spoilt("d", float("nan"), 9), "accumulate": 4},
            r"d_loss became nan at 16 images seen \(16 px\)",
        ),
        ({"penalties": [R1(float("nan"))]}, r"d_r1 became nan at 0 images seen \(8 px\)"),
        ({"penalties": [Cliff(1.0)]}, r"d_grad_norm became nan at 0 images seen"),
    ],
    ids=["d_loss", "g_loss", "one part of a batch", "penalty", "gradient alone"],
)
def test_non_finite_loss_is_named_and_weights_stay_unchanged(settings: dict[str, Any], message: str) -> None:
    for loss in settings.values():
        if isinstance(loss, Spoilt):  # parameters of a test are made once
            settings = {**settings, "adversarial": Spoilt(loss.side, loss.value, loss.left)}
    gan = tiny_gan(**settings)
    trainer = tiny_trainer(96, stages=FADING)
    with pytest.raises(TrainingStopped, match=message):
        trainer.fit(gan, tiny_data())
    assert all(value.isfinite().all() for value in gan.state_dict().values())
    for optimizer in trainer.optimizers:
        for state in optimizer.state.values():
            assert all(moment.isfinite().all() for moment in state.values())
