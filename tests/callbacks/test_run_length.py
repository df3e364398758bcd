"""RunLength: what ends a run, and stages and schedules that are given as shares of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from imagen_pl.callbacks import run_length
from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.callbacks.run_length import RunLength
from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.gradient_penalties import R1
from imagen_pl.schedules import Cosine, Linear, RunShare, Stage
from tests.helpers.clock import FakeClock
from tests.helpers.fakes import MeanColour
from tests.helpers.training import (
    AtEachBatch,
    SaveAt,
    assert_same,
    tiny_data,
    tiny_gan,
    tiny_trainer,
    weights_of,
)

# A quarter of the run at 8 px, a quarter at 16 px, half at 32 px.
SHARES = (
    Stage(8, share=0.25, batch_size=8),
    Stage(16, share=0.25, batch_size=8, fade_share=0.125),
    Stage(32, batch_size=4, fade_share=0.25),
)
FIXED = (Stage(8, kimg=0.064, batch_size=8), Stage(16, kimg=1.0, batch_size=8))


def tenths(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """A batch takes a tenth of a second at 8 px, and twice as long at each larger size."""
    return FakeClock(monkeypatch, run_length, lambda gan: 0.1 * gan.growth.resolution / 8)


class Batches(AtEachBatch):
    """Clock, resolution, fade and learning rate of each batch; the images have the network's resolution."""

    def __init__(self) -> None:
        super().__init__(after=self._note)
        self.rows: list[tuple[int, int, float, float]] = []

    def _note(self, gan: TextToImageGAN, batch: Any) -> None:
        growth = gan.growth
        assert batch.images.shape[-1] == growth.resolution
        self.rows.append((gan.images_seen, growth.resolution, growth.fade, gan.learning_rates[1]))

    def count(self) -> dict[int, int]:
        resolutions = [row[1] for row in self.rows]
        return {r: resolutions.count(r) for r in dict.fromkeys(resolutions)}


def fit(
    length: RunLength,
    *callbacks: Any,
    stages: tuple[Stage, ...] = SHARES,
    gan: TextToImageGAN | None = None,
    ckpt_path: Path | None = None,
    data: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[TextToImageGAN, Batches, Trainer]:
    batches = Batches()
    gan = tiny_gan() if gan is None else gan
    growing = ProgressiveGrowing(list(stages))
    trainer = tiny_trainer(8, [*callbacks, growing, length, batches], **{"max_steps": -1, **settings})
    trainer.fit(gan, tiny_data(**data or {}), ckpt_path=ckpt_path)
    return gan, batches, trainer


def test_max_images_ends_the_run_and_shares_are_of_it() -> None:
    gan, batches, _ = fit(RunLength(max_images=160))
    assert gan.images_seen == 160
    assert batches.count() == {8: 5, 16: 5, 32: 20}
    assert [round(fade, 6) for _, resolution, fade, _ in batches.rows if resolution == 16] == [
        0,
        0.4,
        0.8,
        1,
        1,
    ]
    fades = [fade for _, resolution, fade, _ in batches.rows if resolution == 32]
    assert fades == pytest.approx([min(i / 10, 1) for i in range(20)])


def test_stages_get_their_shares_of_max_steps() -> None:
    """Lightning counts two steps a batch."""
    gan, batches, _ = fit(RunLength(), max_steps=2 * 40)
    assert batches.count() == {8: 10, 16: 10, 32: 20}
    assert gan.images_seen == 240


def test_stages_get_their_shares_of_max_time_at_any_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = tenths(monkeypatch)
    gan, batches, _ = fit(RunLength(max_time="00:00:01:00"), clock.tick)
    assert gan.growth.resolution == 32
    assert clock.now == pytest.approx(60, abs=0.5)
    seconds = {r: n * 0.1 * r / 8 for r, n in batches.count().items()}
    assert seconds == pytest.approx({8: 15, 16: 15, 32: 30}, rel=0.1)
    assert batches.rows[-1][2] == 1.0


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetching_workers_use_the_right_stage(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Batches` compares every batch with the network; the stages are planned while the workers read."""
    clock = tenths(monkeypatch)
    data = {"num_workers": workers, "epoch_kimg": 10.0}
    _, batches, _ = fit(RunLength(max_time="00:00:00:12"), clock.tick, data=data)
    assert set(batches.count()) == {8, 16, 32}


def test_even_a_run_that_is_too_short_reaches_its_last_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = tenths(monkeypatch)
    gan, batches, _ = fit(RunLength(max_time="00:00:00:06"), clock.tick)
    assert gan.growth.resolution == 32
    assert min(batches.count().values()) >= 3


def test_resumed_run_equals_uninterrupted_to_the_bit(tmp_path: Path) -> None:
    def gan() -> TextToImageGAN:
        return tiny_gan(learning_rate_schedule=Cosine(1.0, 0.25, share=1.0))

    at = tmp_path / "at.ckpt"
    whole, batches, _ = fit(RunLength(max_images=160), SaveAt({56: at}), gan=gan())
    rates = [row[3] for row in batches.rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(1e-3 * 0.25, rel=0.02)
    resumed, later, _ = fit(RunLength(max_images=160), gan=gan(), ckpt_path=at)
    assert later.rows == [row for row in batches.rows if row[0] > 56]
    assert_same(weights_of(resumed), weights_of(whole))


def test_resume_with_more_time_extends_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never goes back to an earlier stage, and its learning rate does not rise again."""
    at = tmp_path / "at.ckpt"
    clock = tenths(monkeypatch)

    def gan() -> TextToImageGAN:
        return tiny_gan(learning_rate_schedule=Linear(1.0, 0.0, share=1.0))

    _, first, trainer = fit(RunLength(max_time="00:00:00:20"), clock.tick, gan=gan())
    trainer.save_checkpoint(at)
    length = RunLength(max_time="00:00:00:40")
    _, later, _ = fit(length, clock.tick, gan=gan(), ckpt_path=at)
    assert set(later.count()) == {32}
    assert length.time_elapsed() == pytest.approx(40, abs=0.5)
    assert max(row[3] for row in later.rows) <= first.rows[-1][3]


@pytest.mark.parametrize(("stopped_at", "warned"), [(80, False), (152, True)])
def test_a_new_limit_after_the_schedules_have_ended_gives_a_warning(
    stopped_at: int, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, output = tmp_path / "at.ckpt", []
    monkeypatch.setattr(run_length, "say", lambda trainer, line: output.append(line))

    def gan() -> TextToImageGAN:
        return tiny_gan(learning_rate_schedule=Linear(1.0, 0.0, share=1.0))

    fit(RunLength(max_images=160), SaveAt({stopped_at: at}), gan=gan())
    fit(RunLength(max_images=160), gan=gan(), ckpt_path=at)
    assert not output
    fit(RunLength(max_images=320), gan=gan(), ckpt_path=at)
    assert len(output) == warned
    if warned:
        assert "this run has a new limit, but 95% of its schedules had passed before" in output[0]
        assert "(the learning rates at 0.05 times their settings)" in output[0]
        assert "--model.generator.init_from" in output[0]


def test_a_run_cut_short_and_resumed_with_more_images_keeps_its_stages_in_order(tmp_path: Path) -> None:
    at = tmp_path / "at.ckpt"
    fit(RunLength(max_images=160), SaveAt({64: at}))
    gan, later, _ = fit(RunLength(max_images=320), ckpt_path=at)
    assert gan.images_seen == 320
    # At 64 of 160 images 0.4 of the run was done; of the other 0.6 a sixth was left at 16 px.
    assert later.count() == {16: 6, 32: 52}


def test_max_time_includes_setup_and_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = tenths(monkeypatch)

    class Slow(AtEachBatch):
        def on_fit_start(self, *args: Any) -> None:
            clock.now += 5  # as preparing the data takes

        def on_validation_end(self, *args: Any) -> None:
            clock.now += 3

    length = RunLength(max_time="00:00:00:30")
    stages = (Stage(8, kimg=1.0, batch_size=8),)
    gan = tiny_gan(metrics=[MeanColour()])
    data = {"epoch_kimg": 0.8, "val_fraction": 0.3}
    _, batches, _ = fit(length, Slow(), clock.tick, stages=stages, gan=gan, data=data)
    assert clock.now == pytest.approx(30, abs=0.2)
    assert 5 + 0.1 * len(batches.rows) < 26


def test_shares_need_a_limit() -> None:
    with pytest.raises(UserError, match=r"but the run has no limit: set --trainer.max_time"):
        fit(RunLength())
    gan = tiny_gan(learning_rate_schedule=Cosine(1.0, 0.25, share=1.0))
    with pytest.raises(UserError, match=r"but the run has no limit: set --trainer.max_time"):
        fit(RunLength(), stages=FIXED, gan=gan)


def test_unreachable_last_stage_is_warned_of_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output: list[tuple[int, str]] = []
    gan = tiny_gan()
    monkeypatch.setattr(run_length, "say", lambda trainer, line: output.append((gan.images_seen, line)))
    fit(RunLength(max_images=48), stages=FIXED, gan=gan)
    ((seen, line),) = output
    assert seen == 0
    assert (
        "this run will see about 48 images and end at 8 px, in stage 1 of 2; the stage of 16 px begins at 64"
        in line
    )
    assert "--growth.kimg_scale 0.45" in line


def test_unreachable_last_stage_in_max_time_is_warned_of_after_20_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output: list[tuple[int, str]] = []
    gan, clock = tiny_gan(), tenths(monkeypatch)
    monkeypatch.setattr(run_length, "say", lambda trainer, line: output.append((gan.images_seen, line)))
    stages = (Stage(8, kimg=1.0, batch_size=8), Stage(16, kimg=1.0, batch_size=8))
    fit(RunLength(max_time="00:00:00:05"), clock.tick, stages=stages, gan=gan)
    ((seen, line),) = output
    assert seen == 160
    assert "this run will see about 400 images and end at 8 px" in line


def test_reachable_last_stage_gives_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    output: list[str] = []
    monkeypatch.setattr(run_length, "say", lambda trainer, line: output.append(line))
    fit(RunLength(max_images=80), stages=FIXED)
    fit(RunLength(max_images=160))
    assert output == []


def test_elapsed_time_of_a_lightning_timer_checkpoint_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tenths(monkeypatch)
    length = RunLength(max_time="00:00:01:00")
    timer = {"time_elapsed": {"train": 45.0}}
    length.on_load_checkpoint(None, None, {"callbacks": {"Timer": timer}})  # type: ignore[arg-type]
    assert length.time_remaining() == 15


def test_shares_follow_the_latest_measured_speed() -> None:
    share = RunShare()
    assert (share(0), share(10**9), share.images_at(0.5)) == (0, 0, float("inf"))
    share.measure(0, 1000)
    assert (share(250), share(2000), share.images_at(0.5)) == (0.25, 1, 500)
    share.measure(500, 1500)  # it continues from a half, at a third of the speed
    assert (share(500), share(1250), share(2000)) == (0.5, 0.75, 1)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Stage(8, batch_size=4), Stage(16, share=0.5, batch_size=4)], r"stages\[0\].share is missing"),
        ([Stage(8, share=1.5, batch_size=4)], r"stages\[0\].share 1.5 is not between 0 and 1"),
        ([Stage(8, share=0.6, batch_size=4), Stage(16, share=0.6, batch_size=4)], "add up to 1.2"),
        ([Stage(8, share=1.0, batch_size=4), Stage(16, batch_size=4)], "the last stage needs some of it"),
        (
            [Stage(8, share=0.5, batch_size=4), Stage(16, batch_size=4, fade_share=0.6)],
            r"stages\[1\].fade_share 0.6 is not between 0 and the stage's share 0.5",
        ),
        ([Stage(8, batch_size=4), Stage(16, kimg=1, batch_size=4)], r"stages\[0\] has no length"),
    ],
)
def test_invalid_shares_raise(stages: list[Stage], message: str) -> None:
    with pytest.raises(UserError, match=f"ProgressiveGrowing: .*{message}"):
        ProgressiveGrowing(stages)


def test_kimg_scale_and_shares_exclude_each_other() -> None:
    with pytest.raises(UserError, match="kimg_scale scales stages given in kimg"):
        ProgressiveGrowing(list(SHARES), kimg_scale=0.5)


def test_schedule_by_share_needs_a_limit() -> None:
    with pytest.raises(ValueError, match="Linear has no length: give kimg, thousands of images, or share"):
        Linear(0.0, 1.0)


def test_shares_take_precedence_over_kimg() -> None:
    """Items of an overlay's list inherit what they leave out, so the recipe's kimg stays beside shares."""
    gan = tiny_gan(learning_rate_schedule=Linear(1.0, 0.0, kimg=1.0, share=1.0))
    stages = (
        Stage(8, kimg=1.0, share=0.5, batch_size=8),
        Stage(16, kimg=1.0, fade_kimg=1.0, batch_size=8),
    )
    _, batches, _ = fit(RunLength(max_images=80), stages=stages, gan=gan)
    assert batches.count() == {8: 5, 16: 5}
    assert batches.rows[-1][2:] == (1.0, pytest.approx(1e-4))


def test_schedule_of_a_penalty_can_be_a_share_of_the_run() -> None:
    penalty = R1(2.0, schedule=Linear(1.0, 0.0, share=1.0))
    fit(RunLength(max_images=80), gan=tiny_gan(penalties=[penalty]))
    assert penalty.weight_at(8, 40) == pytest.approx(1.0)


def test_a_schedule_by_share_needs_the_callback() -> None:
    with pytest.raises(UserError, match="add the callback RunLength"):
        Linear(0.0, 1.0, share=0.5)(100)
    assert torch.tensor(Linear(0.0, 1.0, kimg=1)(500)) == 0.5
