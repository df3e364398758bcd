"""The warning of a run that will see too few images for its recipe; the clock is a fake one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from imagen_pl.callbacks import slow_recipe
from imagen_pl.callbacks.run_length import RunLength
from imagen_pl.callbacks.slow_recipe import SlowRecipe, days_to_seconds, round_to_two_digits
from imagen_pl.schedules import Constant, Cosine, Schedule, Stage
from imagen_pl.training.precision import Support
from tests.helpers.training import tiny_data, tiny_gan, train

ONE_STAGE = (Stage(8, kimg=1.0, batch_size=8),)
MADE_FOR_1000 = Cosine(1.0, 0.1, kimg=1.0)
NEVER = 10**6  # images


class FakeTime(Callback):
    """Each batch takes `batch_s` seconds, a batch of validation a minute."""

    def __init__(self, batch_s: float = 1.0) -> None:
        self.now_s, self.batch_s = 0.0, batch_s

    def __call__(self) -> float:
        return self.now_s

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, i: int) -> None:
        self.now_s += self.batch_s

    def on_validation_batch_start(self, *_: Any) -> None:
        self.now_s += 60


class FakeTimer(Timer):
    """Lightning's limit of time, on the fake clock."""

    def __init__(self, limit_s: float, clock: FakeTime) -> None:
        super().__init__(timedelta(seconds=limit_s))
        self.limit_s, self.clock = limit_s, clock

    def time_elapsed(self, stage: Any = "train") -> float:
        return self.clock.now_s

    def time_remaining(self, stage: Any = "train") -> float | None:
        return self.limit_s - self.clock.now_s


def warnings_of(
    images: int = 240,
    limit_s: float | None = None,
    schedule: Schedule | None = MADE_FOR_1000,
    clock: FakeTime | None = None,
    stages: tuple[Stage, ...] = ONE_STAGE,
    **settings: Any,
) -> list[str]:
    """The output of a run of so many images; a batch of 8 takes a second."""
    said: list[str] = []
    clock = clock or FakeTime()
    callbacks: list[Callback] = [clock, SlowRecipe(said.append, clock)]
    if limit_s is not None:
        callbacks.insert(1, FakeTimer(limit_s, clock))
    gan = tiny_gan(learning_rate_schedule=schedule)
    train(gan, images, callbacks, stages=stages, **settings)
    return said


def test_too_slow_run_gets_a_warning_with_its_expected_images_and_advice() -> None:
    (line,) = warnings_of(limit_s=40, max_steps=-1)

    assert line == (
        "Warning: at 8 images/s this run will see about 320 images, but its recipe is made for 1,000 "
        "(kimg of its learning-rate schedule). To get more from it: "
        "let it run longer (--trainer.max_time 00:00:03:00); "
        "shorten the schedule (--model.learning_rate_schedule.init_args.kimg 0.32); use narrower networks "
        "(channels)."
    )


def test_a_schedule_by_share_needs_no_shortening() -> None:
    """Its kimg is only the number of images that the recipe is made for."""
    by_share = replace(MADE_FOR_1000, share=1.0)
    said: list[str] = []
    clock = FakeTime()
    gan = tiny_gan(learning_rate_schedule=by_share)
    callbacks = [clock, FakeTimer(40, clock), RunLength(max_images=NEVER), SlowRecipe(said.append, clock)]
    train(gan, NEVER, callbacks, stages=ONE_STAGE, max_steps=-1)

    (line,) = said
    assert "will see about 320 images, but its recipe is made for 1,000" in line
    assert "shorten the schedule" not in line


def test_warning_comes_once_after_20_batches() -> None:
    assert warnings_of(images=19 * 8, limit_s=40) == []
    assert len(warnings_of(images=20 * 8, limit_s=40)) == 1
    assert len(warnings_of(images=60 * 8, limit_s=60, max_steps=-1)) == 1


def test_run_that_reaches_half_of_its_images_gives_no_warning() -> None:
    assert warnings_of(limit_s=63, max_steps=-1) == []  # 504 of 1,000


def test_the_first_batches_are_not_part_of_the_speed() -> None:
    clock = FakeTime(batch_s=30)
    said: list[str] = []

    class Faster(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
            clock.batch_s = 1.0  # from the second batch on

    callbacks = [clock, FakeTimer(30 + 63, clock), Faster(), SlowRecipe(said.append, clock)]
    gan = tiny_gan(learning_rate_schedule=MADE_FOR_1000)
    train(gan, NEVER, callbacks, stages=ONE_STAGE, max_steps=-1)

    assert said == []  # about half of it


def test_validation_is_not_part_of_the_speed() -> None:
    """Validation runs after every ten batches and takes a minute or more."""
    (line,) = warnings_of(limit_s=100, data=tiny_data(val_fraction=0.25), max_steps=-1)

    assert "at 8 images/s" in line


def test_slow_batches_are_measured_for_30_seconds() -> None:
    (line,) = warnings_of(limit_s=300, clock=FakeTime(batch_s=70), max_steps=-1)

    assert "at 0.11 images/s this run will see about 34 images" in line


def test_limits_of_steps_and_of_epochs_are_known_without_a_clock() -> None:
    (line,) = warnings_of(images=240)  # 30 batches of two optimizers
    assert "see about 240 images" in line
    assert "let it run longer (--trainer.max_steps 250)" in line

    (line,) = warnings_of(max_steps=-1, max_epochs=3)  # of 80 images
    assert "see about 240 images" in line
    assert "let it run longer (--trainer.max_epochs 13)" in line


def test_every_too_low_limit_is_named() -> None:
    (line,) = warnings_of(images=240, limit_s=40)

    assert "let it run longer (--trainer.max_steps 250 --trainer.max_time 00:00:03:00)" in line


def test_a_later_stage_is_measured_too() -> None:
    """Sixteen times the pixels, here eight times slower."""
    stages = (Stage(8, kimg=0.16, batch_size=8), Stage(16, kimg=1.0, batch_size=8))
    clock = FakeTime()

    class Slower(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
            clock.batch_s = 8.0 if trainer.global_step >= 2 * 20 else 1.0

    said: list[str] = []
    callbacks = [Slower(), clock, FakeTimer(300, clock), SlowRecipe(said.append, clock)]
    train(tiny_gan(learning_rate_schedule=MADE_FOR_1000), NEVER, callbacks, stages=stages, max_steps=-1)

    (line,) = said
    assert "at 1 images/s this run will see about 440 images" in line


@pytest.mark.parametrize("schedule", [None, Constant(1.0)])
def test_recipe_without_an_end_gives_no_warning(schedule: Schedule | None) -> None:
    assert warnings_of(limit_s=30, schedule=schedule) == []


def test_endless_run_and_dry_run_give_no_warning(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 50

    said: list[str] = []
    train(
        tiny_gan(learning_rate_schedule=MADE_FOR_1000),
        NEVER,
        [SlowRecipe(said.append), Stop()],
        stages=ONE_STAGE,
        max_steps=-1,
    )
    assert said == []
    assert warnings_of(limit_s=30, fast_dev_run=25) == []


def test_float32_is_advised_if_bfloat16_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_recipe, "bfloat16_support", lambda device: Support(False, "it is a test"))

    (line,) = warnings_of(limit_s=40, precision="bf16-mixed")
    assert "compute in float32 (--trainer.precision 32-true); let it run longer" in line

    (line,) = warnings_of(limit_s=40)
    assert "32-true" not in line


def test_numbers_are_formatted_for_text_and_for_the_command_line() -> None:
    assert [round_to_two_digits(n) for n in (0, 7, 768, 11_776, 48_900)] == [1, 7, 770, 12_000, 49_000]
    assert days_to_seconds(61) == "00:00:02:00"
    assert days_to_seconds(90_000) == "01:01:00:00"
