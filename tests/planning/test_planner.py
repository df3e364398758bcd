"""What is chosen for data, time and speed; among them the recipes that ship."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import yaml

from imagen_pl.errors import UserError
from imagen_pl.planning.data_profile import profile
from imagen_pl.planning.expectations import lines, warnings
from imagen_pl.planning.planner import Budget, Plan, Speed, assume_speed, make_plan
from imagen_pl.planning.recipe import recipe
from imagen_pl.planning.settings import to_dict, to_yaml
from tests.helpers.planning import folder_of, loss_terms, machine
from tests.helpers.runs import REPOSITORY

# Not part of a plan: the captions to sample, and the length of a run.
_BY_HAND = ("samples", "growth", "learning_rate_schedule")


def _recipe(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs" / name).read_text())
    return found


def _losses(plan: Plan) -> list[str]:
    return [loss["class_path"].rsplit(".", 1)[-1] for loss in loss_terms(to_dict(recipe(plan)))]


def _pixel_schedule(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the schedule of pixel matching's weight."""
    (pixels,) = (term for term in loss_terms(config) if term["class_path"].endswith(".PixelMatching"))
    found: dict[str, Any] = pixels["init_args"]["generator_weight"]["init_args"]
    return found


@pytest.mark.parametrize("images_per_second", [26, 40, 78])  # AVX2, and a CPU with bfloat16
def test_the_quickstart_is_the_plan_for_the_emoji_in_eight_minutes(images_per_second: float) -> None:
    mine = to_dict(recipe(make_plan(profile("emoji"), Budget(8 / 60), machine(images_per_second))))
    theirs = _recipe("experiment/quickstart.yaml")

    stage, quickstart = mine["growth"]["stages"][-1], theirs["growth"]["stages"][-1]
    assert (stage["resolution"], stage["batch_size"]) == (quickstart["resolution"], quickstart["batch_size"])
    # The quickstart's weight of pixel matching falls over 40 thousand images, which are all that the plan
    # expects where the quickstart was made. A plan states them as a share of its time.
    fall, quickstart_fall = (_pixel_schedule(config) for config in (mine, theirs))
    assert (fall.pop("share"), quickstart_fall.pop("kimg")) == (1.0, 40)
    for section in ("model", "data"):
        for key, value in theirs[section].items():
            if key not in _BY_HAND and not (key == "ema_halflife_kimg" and images_per_second < 78):
                assert mine[section][key] == value, key
    assert mine["checkpoint"]["monitor"] == theirs["checkpoint"]["monitor"]


def test_the_folder_recipe_is_the_plan_for_10_000_photographs_in_a_day_on_a_gpu() -> None:
    """Up to the 384 maps that it has at 16 px: min(512, 8192 / 16) is 512."""
    plan = make_plan(folder_of(9_500), Budget(24, gpus=1), machine(110, 8192, 64))
    mine, theirs = to_dict(recipe(plan)), _recipe("experiment/folder64.yaml")

    assert plan.design.kimg == pytest.approx(10_100, rel=0.1)
    for stage, other in zip(mine["growth"]["stages"], theirs["growth"]["stages"], strict=True):
        assert (stage["resolution"], stage["batch_size"]) == (other["resolution"], other["batch_size"])
    assert [stage.kimg for stage in plan.stages] == pytest.approx(
        [stage["kimg"] for stage in theirs["growth"]["stages"]], rel=0.12
    )
    for network in ("generator", "discriminator"):
        mine_args, args = (each["model"][network]["init_args"] for each in (mine, theirs))
        assert {**mine_args["channels"], 16: 384} == args["channels"]
        for key in (
            "style_dim",
            "latent_dim",
            "text_attention_at",
            "self_attention_at",
            "final_dim",
            "heads_at",
        ):
            assert mine_args.get(key) == args.get(key)
        assert mine_args.get("minibatch_stddev") == args.get("minibatch_stddev")
    for key in ("penalties", "augment", "generator_optimizer", "discriminator_optimizer"):
        assert mine["model"][key] == theirs["model"][key], key
    assert loss_terms(mine) == loss_terms(theirs)
    assert mine["model"]["ema_halflife_kimg"] == theirs["model"]["ema_halflife_kimg"]
    assert mine["data"]["caption_dropout"] == theirs["data"]["caption_dropout"]


def test_captions_with_many_images_get_no_paired_losses() -> None:
    data = folder_of(8_000, side=64, images_per_caption=50.0, shared=1.0)
    plan = make_plan(data, Budget(8 / 60), machine(26))

    assert _losses(plan) == ["MismatchedCaptions", "ImageTextContrastive"]
    assert "prior" not in to_dict(recipe(plan))["model"]["generator"]["init_args"]
    assert "no paired losses, since 100% of the images share their captions" in "\n".join(lines(plan))
    alone = make_plan(folder_of(8_000, side=64), Budget(8 / 60), machine(26))
    assert {"FeatureMatching", "PixelMatching", "PerceptualMatching"} < set(_losses(alone))


def test_small_sets_in_long_runs_are_augmented_and_large_ones_are_not() -> None:
    few, many = (
        make_plan(folder_of(images), Budget(24, gpus=1), machine(120, 8192, 64))
        for images in (2_000, 300_000)
    )

    assert to_dict(recipe(few))["model"]["augment"]["init_args"]["target"] == 0.6
    assert to_dict(recipe(many))["model"]["augment"] is None


def test_more_time_gives_larger_pictures_wider_networks_and_more_images() -> None:
    plans = [make_plan(folder_of(50_000), Budget(hours, 1), machine(1000, 8192, 64)) for hours in (1, 8, 100)]

    sizes = [(plan.design.resolution, plan.design.base, plan.design.kimg) for plan in plans]
    for smaller, larger in pairwise(sizes):
        assert smaller[0] <= larger[0]
        assert smaller[2] < larger[2]
    assert sizes[0][0] < sizes[-1][0]


def test_pictures_are_no_larger_than_the_images() -> None:
    for side, resolution in ((12, 8), (20, 16), (40, 32)):
        plan = make_plan(folder_of(5_000, side=side), Budget(100, 1), machine(1000, 8192, 64))
        assert plan.design.resolution == resolution


def test_given_resolution_is_kept() -> None:
    assert make_plan(folder_of(5_000), Budget(0.1, resolution=64), machine(26)).design.resolution == 64
    with pytest.raises(UserError, match="half of the images in my_photos have less than 24 px"):
        make_plan(folder_of(100, side=24), Budget(1, resolution=64), machine(26))


def test_too_optimistic_estimate_is_corrected_by_measuring() -> None:
    """Wide networks are ten times as slow here as their arithmetic says."""
    honest = machine(78)

    def measure(plan: Plan) -> Speed:
        speed = honest(plan)
        if plan.design.base <= 1024:
            return speed
        slower = {resolution: rate / 10 for resolution, rate in speed.by_resolution.items()}
        return Speed(speed.images_per_second / 10, slower, 1.0)

    plan = make_plan(folder_of(9_000, side=32), Budget(8), measure)
    assert plan.design.base == 1024
    assert make_plan(folder_of(9_000, side=32), Budget(8), honest).design.base > 1024


def test_too_little_data_and_time_are_warned_of() -> None:
    output = "\n".join(warnings(make_plan(folder_of(200, side=64), Budget(0.01), machine(26))))
    assert "200 images are few" in output
    assert "give blobs" in output
    output = "\n".join(warnings(make_plan(folder_of(500_000, side=64), Budget(0.2), machine(26))))
    assert "sees 4% of the data" in output
    assert list(warnings(make_plan(folder_of(9_500), Budget(24, 1), assume_speed(10)))) == []


def test_stages_are_shares_of_the_time_in_which_they_see_their_images() -> None:
    plan = make_plan(folder_of(9_500), Budget(24, gpus=1), machine(110, 8192, 64))
    stages = to_dict(recipe(plan))["growth"]["stages"]

    assert "share" not in stages[-1]  # the rest
    seconds = sum(stage.kimg * 1000 / plan.speed.by_resolution[stage.resolution] for stage in plan.stages)
    for stage, length in zip(stages, plan.stages, strict=True):
        share = length.kimg * 1000 / plan.speed.by_resolution[length.resolution] / seconds
        assert stage.get("share", share) == pytest.approx(share, rel=0.05)
        assert stage.get("fade_share", 0) == pytest.approx(share * length.fade_kimg / length.kimg, rel=0.05)


def test_no_stage_and_no_learning_rate_depends_on_the_measured_speed() -> None:
    for plan in (
        make_plan(folder_of(9_500), Budget(24, gpus=1), machine(110, 8192, 64)),
        make_plan(folder_of(9_500), Budget(8 / 60), machine(26)),
    ):
        settings = to_dict(recipe(plan))
        assert not any("kimg" in key for stage in settings["growth"]["stages"] for key in stage)
        schedule = settings["model"]["learning_rate_schedule"]["init_args"]
        assert schedule["share"] == 1.0  # beside which kimg does not count


@pytest.mark.parametrize(("hours", "gpus", "speed", "batch"), [(0.13, 0, 26, 32), (24, 1, 110, 64)])
def test_the_comment_of_the_stages_gives_the_rule_of_their_batches(
    hours: float, gpus: int, speed: float, batch: int
) -> None:
    plan = make_plan(folder_of(9_500), Budget(hours, gpus), machine(speed, 8192 if gpus else 1024, 64))
    text = " ".join(to_yaml(recipe(plan), "A plan.").replace("#", " ").split())

    assert f"Batches of {batch}: the largest that still give 20,000 steps, and at least 32." in text


@pytest.mark.parametrize(("hours", "kimg", "share"), [(0.02, 2, 1.0), (0.4, 37, 1.0), (1.5, 140, 0.5)])
def test_the_weight_of_pixel_matching_falls_within_the_run(hours: float, kimg: float, share: float) -> None:
    plan = make_plan(folder_of(9_000, side=32), Budget(hours), machine(26))
    schedule = _pixel_schedule(to_dict(recipe(plan)))

    assert plan.design.kimg == pytest.approx(kimg, rel=0.1)
    assert schedule == {"start": 100.0, "end": 10.0, "share": share}


def test_time_by_stage_adds_up_to_the_hours() -> None:
    plan = make_plan(folder_of(9_500), Budget(24, 1), assume_speed(10))

    assert sum(hours for _, hours in plan.hours_by_stage()) == pytest.approx(24, rel=0.1)
