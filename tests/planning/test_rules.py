"""Each rule against the papers' and recipes' numbers that its docstring names."""

from __future__ import annotations

import pytest

from imagen_pl.losses.gradient_penalties import PerResolution
from imagen_pl.planning import rules
from imagen_pl.schedules import Stage, check_stages


@pytest.mark.parametrize(
    ("base", "widths"),
    [
        (1024, {4: 256, 8: 128, 16: 64, 32: 32}),  # configs/experiment/quickstart.yaml
        (1536, {4: 256, 8: 192, 16: 96, 32: 48, 64: 24}),  # configs/experiment/emoji64.yaml
        (8192, {4: 512, 8: 512, 16: 512, 32: 256, 64: 128}),  # folder64.yaml, which has 384 at 16 px
    ],
)
def test_widths_are_those_of_the_recipes(base: int, widths: dict[int, int]) -> None:
    assert rules.channels(base, max(widths), rules.channel_cap(base)) == widths


def test_a_wider_base_and_a_larger_picture_never_cost_less() -> None:
    for resolution in (32, 64, 128, 256):
        costs = [rules.cost(base, resolution) for base in rules.BASES]
        assert costs == sorted(costs)
    assert rules.cost(2048, 32) < rules.cost(2048, 64) < rules.cost(2048, 128)


def test_penalties_follow_r3gan_in_long_runs_and_the_recipes_in_short_ones() -> None:
    at = {
        resolution: PerResolution(*rules.penalty_law(resolution, True))(resolution)
        for resolution in (32, 64, 256)
    }

    assert at == pytest.approx({32: 0.5, 64: 2.0, 256: 150.0})
    assert PerResolution(*rules.penalty_law(32, False))(32) == pytest.approx(1.0)
    assert PerResolution(*rules.penalty_law(64, False))(64) == pytest.approx(2.0)


def test_the_average_s_half_life_is_the_quickstart_s_and_folder64_s() -> None:
    assert rules.ema_halflife_kimg(38) == 5
    assert rules.ema_halflife_kimg(10_100) == 50


def test_learning_rates_are_inverse_to_the_width_within_bounds() -> None:
    assert [rules.adam_lr(width) for width in (64, 128, 256, 512, 768)] == pytest.approx(
        [8e-4, 8e-4, 4e-4, 2e-4, 2e-4]
    )


@pytest.mark.parametrize(
    ("kimg", "gpus", "batch"), [(38, 0, 32), (10_100, 1, 64), (38_500, 8, 256), (38_500, 3, 129)]
)
def test_batches_are_the_recipes_and_divide_by_the_gpus(kimg: float, gpus: int, batch: int) -> None:
    assert rules.batch_size(kimg, gpus) == batch
    assert batch % max(gpus, 1) == 0


def test_stages_at_64_px_have_folder64_s_shares() -> None:
    stages = rules.stages(64, 10_100, 64)

    recipe = [(8, 300, 0, 128), (16, 600, 200, 128), (32, 1200, 300, 128), (64, 8000, 400, 64)]
    for mine, theirs in zip(stages, recipe, strict=True):
        assert mine == pytest.approx(theirs, rel=0.02)


def test_stages_at_256_px_are_near_coco256_s() -> None:
    stages = rules.stages(256, 38_500, 256)

    for mine, kimg, fade in zip(stages[:-2], (500, 1000, 2000, 4000), (0, 300, 500, 600), strict=True):
        assert mine.kimg == pytest.approx(kimg, rel=0.15)
        assert mine.fade_kimg == pytest.approx(fade, rel=0.25)


@pytest.mark.parametrize("resolution", rules.RESOLUTIONS)
@pytest.mark.parametrize("kimg", [0.3, 12, 748, 100_000])
def test_stages_can_be_trained_whatever_the_length(resolution: int, kimg: float) -> None:
    stages = rules.stages(resolution, kimg, 32)

    check_stages([Stage(s.resolution, s.kimg, s.batch_size, s.fade_kimg) for s in stages])
    assert sum(stage.kimg for stage in stages) == pytest.approx(kimg, rel=0.1)


def test_paired_losses_need_captions_of_one_image_and_few_passes() -> None:
    assert rules.pairs_fit(shared=0.0, passes=4)
    assert not rules.pairs_fit(shared=0.5, passes=4)
    assert not rules.pairs_fit(shared=0.0, passes=1000)


@pytest.mark.parametrize(("kimg", "share"), [(0.3, 1.0), (38, 1.0), (60, 0.67), (174, 0.5), (2000, 0.5)])
def test_pixel_matching_falls_over_the_quickstart_s_40_kimg_or_half_of_a_longer_run(
    kimg: float, share: float
) -> None:
    assert rules.pixel_matching_share(kimg) == share


def test_augmentation_is_for_small_sets_seen_often() -> None:
    assert rules.needs_augmentation(images=9_500, passes=1000)
    assert not rules.needs_augmentation(images=9_500, passes=4)
    assert not rules.needs_augmentation(images=118_000, passes=325)
