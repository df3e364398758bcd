"""Values that a run logs, and how validation uses the metrics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imagen_pl.imaging.grids import to_uint8
from imagen_pl.losses.adversarial import Relativistic
from imagen_pl.losses.gradient_penalties import R1, R2
from imagen_pl.losses.text_matching import MismatchedCaptions
from imagen_pl.metrics.base import Images
from imagen_pl.models.augment import DiffAugment
from imagen_pl.schedules import Stage
from tests.helpers.fakes import MeanColour
from tests.helpers.training import (
    AtEachBatch,
    Remember,
    StepGradients,
    tiny_data,
    tiny_gan,
    tiny_trainer,
    train,
)

FADING = (Stage(8, kimg=0.016, batch_size=8), Stage(16, kimg=1.0, batch_size=8, fade_kimg=0.032))


def test_each_batch_logs_all_values_over_images_seen() -> None:
    logged, gradients = Remember(), StepGradients()
    gan = tiny_gan(
        adversarial=Relativistic(),
        penalties=[R1(0.5), R2(0.5)],
        losses=[MismatchedCaptions(0.5, 0.25)],
        augment=DiffAugment(probability=0.5, target=0.6, adapt_kimg=1.0),
    )
    train(gan, 48, [gradients], stages=FADING, logger=logged, log_every_n_steps=1)
    rows = [(step, row) for step, row in logged.rows if "train/d_loss" in row]
    assert [step for step, _ in rows] == [row["images_seen"] for _, row in rows] == list(range(8, 49, 8))
    losses = {"d_loss", "g_loss", "d_r1", "d_r2", "d_mismatch", "g_mismatch"}
    looks = {"real_logits", "fake_logits", "d_margin", "d_grad_norm", "g_grad_norm", "d_lr", "g_lr"}
    expected = {f"train/{name}" for name in losses | looks | {"augment_probability"}}
    expected |= {"growth/stage", "growth/resolution", "growth/fade", "images_seen"}
    assert rows[0][1].keys() == expected  # the first batch warms up, so it has no speed
    for step, row in rows[1:]:
        assert row.keys() == expected | {"train/images_per_second", "train/peak_memory_gb"}, step
        assert 0.1 < row["train/peak_memory_gb"] < 100  # of a process that holds torch
        assert row["train/images_per_second"] > 0
        assert row["train/d_margin"] == pytest.approx(
            row["train/real_logits"] - row["train/fake_logits"], abs=1e-6
        )
    assert [row["growth/resolution"] for _, row in rows] == [8, 8, 16, 16, 16, 16]
    assert [row["growth/stage"] for _, row in rows] == [0, 0, 1, 1, 1, 1]
    assert [row["growth/fade"] for _, row in rows] == [1, 1, 0, 0.25, 0.5, 0.75]
    for clock, which, found in gradients.steps:
        norm = float(torch.cat([g.flatten() for g in found.values()]).norm())
        assert logged.column(f"train/{which}_grad_norm")[clock + 8] == pytest.approx(norm, rel=1e-4)
    assert gan.step_logger.status.keys() >= expected - {"images_seen"}


def test_values_are_logged_every_n_steps() -> None:
    logged = Remember()
    train(tiny_gan(), 80, stages=FADING, logger=logged, log_every_n_steps=4)
    assert list(logged.column("train/d_loss")) == [8, 40, 72]
    assert list(logged.column("train/images_per_second")) == [40, 72]


def test_terms_without_weight_are_not_computed() -> None:
    logged = Remember()
    gan = tiny_gan(losses=[MismatchedCaptions(1.0, 0.0)])
    train(gan, 16, stages=FADING, logger=logged, log_every_n_steps=1)
    assert "train/d_mismatch" in logged.rows[-1][1]
    assert "train/g_mismatch" not in logged.rows[-1][1]


# ------------------------------------------------------------------ validation


class Keeping(MeanColour):
    """Keeps the generated images of the current validation."""

    def __init__(self) -> None:
        super().__init__()
        self.fakes: list[Tensor] = []
        self.reals: list[Tensor] = []

    def update(self, images: Images, captions: Any, *, real: bool) -> None:
        super().update(images, captions, real=real)
        assert images.dtype == torch.uint8
        assert len(captions) == len(images)
        (self.reals if real else self.fakes).append(images.clone())


def test_validation_scores_the_average_on_the_held_out_captions() -> None:
    logged, metric = Remember(), Keeping()
    gan = tiny_gan(metrics=[metric], ema_halflife_kimg=1.0, ema_ramp=10.0)
    data = tiny_data(epoch_kimg=0.032, val_fraction=0.3, val_batch_size=3)
    seen: list[Tensor] = []

    def at_validation(*_: Any) -> None:
        rows = list(data.val_dataloader())
        indices = [int(i) for batch in rows for i in batch.indices]
        z = gan.latents_of(indices, seed=gan.seed)
        words = gan.text_encoder.encode([c for batch in rows for c in batch.captions])
        with torch.no_grad():
            seen.append(to_uint8(gan.ema.generator(z, words, gan.growth)))

    class Look(AtEachBatch):
        def on_validation_start(self, *args: Any) -> None:
            at_validation()

    trainer = tiny_trainer(64, [Look()], FADING, logger=logged)
    trainer.fit(gan, data)
    scores = logged.column("val/mean_colour")
    assert list(scores) == [32, 64]  # at the ends of epochs, on the clock of images
    assert float(trainer.callback_metrics["val/mean_colour"]) == pytest.approx(scores[64], rel=1e-6)
    fakes = torch.cat(metric.fakes)
    expected = torch.cat(seen)
    assert fakes.shape == expected.shape
    assert (fakes.int() - expected.int()).abs().max() <= 1  # for any batch size


def test_real_images_are_read_once_per_resolution() -> None:
    metric = Keeping()
    gan = tiny_gan(metrics=[metric])
    stages = (Stage(8, kimg=0.064, batch_size=8), Stage(16, kimg=1.0, batch_size=8))
    data = tiny_data(epoch_kimg=0.016, val_fraction=0.3)
    train(gan, 96, stages=stages, data=data)
    keys = metric.keys
    assert len(keys) == 6  # validations
    # The fourth is at 64 images, where the last batch was still one of 8 px.
    assert [key == keys[0] for key in keys] == [True] * 4 + [False] * 2
    assert keys[4] == keys[5]
    held_out = len(data._rows.validation)
    assert [len(images) for images in metric.reals] == [held_out, held_out]
    assert [images.shape[-1] for images in metric.reals] == [8, 16]
    assert [images.shape[-1] for images in metric.fakes] == [8] * 4 + [16] * 2


def test_cache_key_depends_on_the_selection_of_real_images() -> None:
    keys = []
    for limit, batch_size in ((1.0, 2), (1.0, 3), (1, 2), (1, 3), (2, 2)):
        metric = MeanColour()
        data = tiny_data(epoch_kimg=0.016, val_fraction=0.4, val_batch_size=batch_size)
        train(tiny_gan(metrics=[metric]), 16, data=data, stages=FADING, limit_val_batches=limit)
        keys += metric.keys
    assert keys[0] == keys[1]  # all of them, however they are batched
    assert len(set(keys)) == 4


def test_sanity_check_is_not_scored() -> None:
    """Two batches are not the whole set, so neither scores nor statistics are computed."""
    logged, metric = Remember(), Keeping()
    data = tiny_data(epoch_kimg=0.032, val_fraction=0.5, val_batch_size=2)
    train(tiny_gan(metrics=[metric]), 32, data=data, stages=FADING, logger=logged, num_sanity_val_steps=2)
    held_out = len(data._rows.validation)
    assert held_out > 4
    assert sum(map(len, metric.reals)) == sum(map(len, metric.fakes)) == held_out
    assert list(logged.column("val/mean_colour")) == [32]
