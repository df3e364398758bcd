"""Schedules and stages: pure functions of the images seen."""

from __future__ import annotations

import pytest

from imagen_pl.schedules import Constant, Cosine, Linear, Schedule, Stage, batches, check_stages, position
from imagen_pl.types import Growth

STAGES = [
    Stage(8, kimg=1.0, batch_size=64, fade_kimg=0.5),
    Stage(16, kimg=2.0, batch_size=32, fade_kimg=0.5),
    Stage(32, kimg=1.0, batch_size=16),
]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Constant(0.3), {0: 0.3, 10**9: 0.3}),
        (Linear(2.0, 1.0, kimg=4), {0: 2.0, 1000: 1.75, 4000: 1.0, 9000: 1.0}),
        (Linear(0.0, 1.0, kimg=2, begin_kimg=1), {0: 0.0, 1000: 0.0, 2000: 0.5, 3000: 1.0}),
        (Linear(0.0, 1.0, kimg=0, begin_kimg=1), {999: 0.0, 1000: 1.0}),
        (Cosine(1.0, 0.0, kimg=4), {0: 1.0, 1000: 0.853553, 2000: 0.5, 3000: 0.146447, 4000: 0.0, 9000: 0.0}),
        (Cosine(1.0, 3.0, kimg=4, begin_kimg=2), {0: 1.0, 2000: 1.0, 4000: 2.0, 6000: 3.0}),
        (Cosine(1.0, 0.0, kimg=4, warmup_kimg=2), {0: 0.0, 1000: 0.853553 / 2, 2000: 0.5, 4000: 0.0}),
    ],
)
def test_schedule_passes_through_its_points(schedule: Schedule, values: dict[int, float]) -> None:
    assert {seen: schedule(seen) for seen in values} == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize(
    ("images_seen", "index", "resolution", "fade"),
    [
        (0, 0, 8, 1.0),  # the first stage has nothing to fade from
        (999, 0, 8, 1.0),
        (1000, 1, 16, 0.0),
        (1125, 1, 16, 0.25),
        (1499, 1, 16, 0.998),
        (1500, 1, 16, 1.0),
        (2999, 1, 16, 1.0),
        (3000, 2, 32, 1.0),  # no fade: grown at once
        (4000, 2, 32, 1.0),  # the last stage continues
        (10**9, 2, 32, 1.0),
    ],
)
def test_position_has_the_stage_and_fade_of_an_image_count(
    images_seen: int, index: int, resolution: int, fade: float
) -> None:
    here = position(STAGES, images_seen)

    assert here.index == index
    assert here.stage is STAGES[index]
    assert here.growth == Growth(resolution, fade)


def test_a_stage_begins_on_its_whole_image_whatever_its_fractions_add_up_to() -> None:
    """0.1 + 0.2 is a little more than 0.3 in floating point."""
    stages = [
        Stage(4, 0.1, batch_size=2),
        Stage(8, 0.2, batch_size=2, fade_kimg=0.07),
        Stage(16, 0.1, batch_size=2),
        Stage(32, 1.1, batch_size=2, fade_kimg=0.07),
    ]

    assert position(stages, 99).growth == Growth(4, 1.0)
    assert position(stages, 100).growth == Growth(8, 0.0)
    assert position(stages, 170).growth == Growth(8, 1.0)
    assert position(stages, 299).growth == Growth(8, 1.0)
    assert position(stages, 300).growth == Growth(16, 1.0)
    assert position(stages, 400).growth == Growth(32, 0.0)
    assert position(stages, 470).growth == Growth(32, 1.0)


def test_stage_shorter_than_an_image_is_skipped() -> None:
    assert position([Stage(4, 0.0001, batch_size=2), Stage(8, 1, batch_size=2)], 0).growth == Growth(8, 1.0)


def test_batches_follow_the_stages() -> None:
    stages = [
        Stage(8, 0.1, batch_size=64),
        Stage(16, 0.1, batch_size=32, fade_kimg=0.064),
        Stage(32, 0.1, batch_size=16),
    ]

    seen = [(clock, here.stage.batch_size, here.growth) for clock, here in batches(stages, 0, 260)]

    # The first stage ends at 100, within the batch that starts at 64: the second takes over at 128.
    assert seen == [
        (0, 64, Growth(8, 1.0)),
        (64, 64, Growth(8, 1.0)),
        (128, 32, Growth(16, 28 / 64)),
        (160, 32, Growth(16, 60 / 64)),
        (192, 32, Growth(16, 1.0)),
        (224, 16, Growth(32, 1.0)),
        (240, 16, Growth(32, 1.0)),
        (256, 16, Growth(32, 1.0)),
    ]


def test_batches_from_the_middle_equal_the_remaining_ones() -> None:
    whole = list(batches(STAGES, 0, 5000))
    clocks = [clock for clock, _ in whole]

    for start in (64, clocks[20], clocks[-1]):
        assert list(batches(STAGES, start, 5000)) == whole[clocks.index(start) :]
    assert list(batches(STAGES, 5000, 5000)) == []


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "stages is empty: name at least one stage"),
        (
            [Stage(12, 1, batch_size=4)],
            r"stages\[0\].resolution 12 is not a power of two from 4 up: use 4, 8, 16",
        ),
        ([Stage(2, 1, batch_size=4)], r"stages\[0\].resolution 2 is not a power of two from 4 up"),
        ([Stage(0, 1, batch_size=4)], r"stages\[0\].resolution 0 is not"),
        (
            [Stage(16, 1, batch_size=4), Stage(8, 1, batch_size=4)],
            r"stages\[1\].resolution 8 does not grow on stages\[0\]'s 16",
        ),
        (
            [Stage(8, 1, batch_size=4), Stage(8, 1, batch_size=4)],
            r"stages\[1\].resolution 8 does not grow on stages\[0\]'s 8",
        ),
        ([Stage(8, 1, batch_size=1)], r"stages\[0\].batch_size 1 is too small: .* use 2 or more"),
        ([Stage(8, 0, batch_size=4)], r"stages\[0\].kimg 0 must be more than 0"),
        ([Stage(8, 1, batch_size=4, fade_kimg=2)], r"fade_kimg 2 is not between 0 and the stage's kimg 1"),
        (
            [Stage(8, 1, batch_size=4), Stage(16, 1, batch_size=4, fade_kimg=-1)],
            r"stages\[1\].fade_kimg -1 is not between",
        ),
    ],
)
def test_invalid_stages_raise(stages: list[Stage], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_stages(stages)


def test_valid_stages_are_accepted() -> None:
    check_stages(STAGES)
    check_stages(
        [Stage(4, 1, batch_size=2), Stage(1024, 1, batch_size=2, fade_kimg=1)]
    )  # resolutions may be passed over


def test_empty_stages_raise() -> None:
    with pytest.raises(ValueError, match="stages is empty"):
        position([], 0)
