from __future__ import annotations

import pytest
import yaml

from imagen_pl.planning.planner import Budget, make_plan
from imagen_pl.planning.recipe import recipe
from imagen_pl.planning.settings import Items, Setting, part, to_dict, to_yaml
from tests.helpers.planning import folder_of, machine


def test_yaml_is_what_was_set_with_a_comment_above_each() -> None:
    settings = [
        Setting(
            "model",
            [Setting("loss", part("a.B", weight=1.0, betas=[0.0, 0.99]), "Why a loss.")],
            "Why a model.",
        ),
        Setting("stages", [{"resolution": 8, "kimg": 0.5}, {"resolution": 16, "kimg": 2}]),
        Setting("terms", Items([("First.", part("a.C")), ("", part("a.D", x=None))])),
        Setting("empty", Items([])),
    ]

    text = to_yaml(settings, "Made by hand.")

    assert text.startswith("# Made by hand.\n\n# Why a model.\nmodel:\n  # Why a loss.\n  loss:\n")
    assert (
        yaml.safe_load(text)
        == to_dict(settings)
        == {
            "model": {"loss": {"class_path": "a.B", "init_args": {"weight": 1.0, "betas": [0.0, 0.99]}}},
            "stages": [{"resolution": 8, "kimg": 0.5}, {"resolution": 16, "kimg": 2}],
            "terms": [{"class_path": "a.C"}, {"class_path": "a.D", "init_args": {"x": None}}],
            "empty": [],
        }
    )


@pytest.mark.parametrize("hours", [0.1, 24])
def test_every_line_of_a_plan_is_explained_and_fits_the_page(hours: float) -> None:
    text = to_yaml(recipe(make_plan(folder_of(9_500), Budget(hours, 1), machine(120, 8192, 64))), "A plan.")

    assert max(map(len, text.splitlines())) <= 120
    assert text.count("#") > 40
