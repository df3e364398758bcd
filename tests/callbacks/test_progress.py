"""The progress line of a run."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from lightning.pytorch.callbacks import Timer

from imagen_pl.callbacks import progress
from imagen_pl.callbacks.progress import RunProgress, bar, duration
from imagen_pl.schedules import Stage
from tests.helpers.clock import FakeClock
from tests.helpers.fakes import MeanColour
from tests.helpers.training import AtEachBatch, tiny_data, tiny_gan, tiny_trainer

STAGES = (Stage(8, kimg=0.032, batch_size=8), Stage(16, kimg=1.0, batch_size=8, fade_kimg=0.032))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tenths(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Each batch takes a tenth of a second, so that speeds are known."""
    return FakeClock(monkeypatch, progress, lambda gan: 0.1, now=100.0)


def run(
    monkeypatch: pytest.MonkeyPatch,
    out: io.StringIO,
    images: int = 96,
    callbacks: tuple[Any, ...] = (),
    **settings: Any,
) -> str:
    """Validation at every 48 images."""
    clock = tenths(monkeypatch)
    bars = RunProgress(file=out, log_every_s=0.0, refresh_every_s=0.0)
    trainer = tiny_trainer(
        images, [clock.tick, bars, *callbacks], STAGES, **{"enable_progress_bar": True, **settings}
    )
    trainer.fit(tiny_gan(metrics=[MeanColour()]), tiny_data(epoch_kimg=0.048, val_fraction=0.3))
    return out.getvalue()


def test_output_to_a_file_is_one_line_per_update(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run(monkeypatch, io.StringIO()).splitlines()
    assert lines[0] == "██░░░░░░░░░░░░░░░░░░   8% stage 1/2 · 8 px · 0.0 kimg · 80 images/s · 0:01 left"
    assert (
        lines[4]
        == "████████░░░░░░░░░░░░  42% stage 2/2 · 16 px · fade 0% · 0.0 kimg · 80 images/s · 0:01 left"
    )
    assert lines[5].startswith("██████████░░░░░░░░░░  50% stage 2/2 · 16 px · fade 25% ·")
    assert lines[-1] == "████████████████████ 100% stage 2/2 · 16 px · 0.1 kimg · 80 images/s · 0:00 left"
    assert [line for line in lines if line.startswith("validating")] == ["validating: batch 1 of 1"] * 2
    scores = [line for line in lines if "val/" in line]
    assert len(scores) == 2
    assert re.fullmatch(r"0\.0 kimg  val/mean_colour [\d.]+", scores[0])
    assert re.fullmatch(r"0\.1 kimg  val/mean_colour [\d.]+", scores[1])
    assert "\r" not in "".join(lines)


def test_terminal_has_one_updated_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = run(monkeypatch, Terminal())
    shown = [part for part in text.split("\r") if part.strip()]
    assert any(part.startswith("validating ") for part in shown)
    assert all(
        len(part.rstrip("\n")) <= 59 for part in shown
    )  # no line breaks, and nothing left of the previous line
    scores = [line.split("\r")[-1] for line in text.split("\n") if "val/" in line]
    assert len(scores) == 2
    assert all(re.match(r"0\.\d kimg  val/mean_colour", score) for score in scores)
    assert text.endswith("\n")


def test_lines_are_printed_at_the_given_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = tenths(monkeypatch), io.StringIO()
    bars = RunProgress(file=out, log_every_s=0.35)
    trainer = tiny_trainer(96, [clock.tick, bars], STAGES, enable_progress_bar=True)
    trainer.fit(tiny_gan(), tiny_data())
    # At batches 1, 5 and 9 of 12, and at the end.
    assert [line.split(" ")[0].count("█") for line in out.getvalue().splitlines()] == [2, 8, 15, 20]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # 12 batches would be 1.2 s; two epochs of 48 images end sooner.
        ({"max_steps": 400, "max_epochs": 2}, "██░░░░░░░░░░░░░░░░░░   8% stage 1/2 .* 0:01 left"),
        ({"max_steps": -1, "max_epochs": 2}, "██░░░░░░░░░░░░░░░░░░   8% stage 1/2 .* 0:01 left"),
    ],
)
def test_remaining_time_uses_the_first_limit_reached(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], expected: str
) -> None:
    lines = run(monkeypatch, io.StringIO(), **settings).splitlines()
    assert re.match(expected, lines[0]), lines[0]


def test_time_limit_gives_the_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = Timer(duration={"hours": 1})
    monkeypatch.setattr(timer, "time_elapsed", lambda stage="train": 900.0)
    monkeypatch.setattr(timer, "time_remaining", lambda stage="train": 2700.0)
    stop = AtEachBatch(after=lambda gan, _: setattr(gan.trainer, "should_stop", True))
    lines = run(monkeypatch, io.StringIO(), callbacks=(timer, stop), max_steps=10**9).splitlines()
    assert lines[0].startswith("█████░░░░░░░░░░░░░░░  25% stage 1/2")
    assert lines[0].endswith("45:00 left")


def test_validation_after_the_time_limit_shows_100_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = Timer(duration={"hours": 1})
    monkeypatch.setattr(timer, "time_elapsed", lambda stage="train": 3700.0)
    monkeypatch.setattr(timer, "time_remaining", lambda stage="train": -100.0)
    trainer = tiny_trainer(8, callbacks=[timer], max_steps=-1)
    assert progress._share_and_time_left(trainer, progress._Start(0.0, 0, 0), 1.0, 0) == (1.0, 0.0)


def test_no_remaining_time_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = AtEachBatch(after=lambda gan, _: setattr(gan.trainer, "should_stop", True))
    lines = run(monkeypatch, io.StringIO(), callbacks=(stop,), max_steps=-1).splitlines()
    assert lines[0] == "stage 1/2 · 8 px · 0.0 kimg · 80 images/s"


def test_validation_does_not_count_in_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = tenths(monkeypatch), io.StringIO()

    class Pause(AtEachBatch):
        def on_validation_start(self, *args: Any) -> None:
            clock.now += 60

    bars = RunProgress(file=out, log_every_s=0.0)
    trainer = tiny_trainer(96, [clock.tick, Pause(), bars], STAGES, enable_progress_bar=True)
    trainer.fit(tiny_gan(metrics=[MeanColour()]), tiny_data(epoch_kimg=0.048, val_fraction=0.3))
    speeds = re.findall(r"(\d+) images/s", out.getvalue())
    assert set(speeds) == {"80"}


def test_disabled_bar_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = tenths(monkeypatch), io.StringIO()
    bars = RunProgress(file=out)
    bars.disable()
    trainer = tiny_trainer(16, [clock.tick, bars], STAGES, enable_progress_bar=True)
    trainer.fit(tiny_gan(), tiny_data())
    assert out.getvalue() == ""


def test_error_starts_on_a_new_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    out = Terminal()
    with pytest.raises(RuntimeError, match="broken"):
        run(monkeypatch, out, callbacks=(AtEachBatch(after=fail),))
    assert out.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0:00"),
        (6.6, "0:07"),
        (59.6, "1:00"),
        (750, "12:30"),
        (3599.7, "1:00:00"),
        (11100, "3:05:00"),
        (183900, "2 d 03:05"),
    ],
)
def test_duration_is_formatted_by_its_largest_unit(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(("share", "full"), [(-1, 0), (0, 0), (0.24, 5), (0.5, 10), (1, 20), (3, 20)])
def test_bar_is_filled_by_its_share(share: float, full: int) -> None:
    assert bar(share) == "█" * full + "░" * (20 - full)
