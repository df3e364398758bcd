"""The picture that compares models: its rows, its prompts, and bad words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imagen_pl
from benchmarks import recipe_grid
from imagen_pl.imaging.grids import strip
from tests.helpers.runs import Tiny


def test_each_row_holds_eight_seeds_of_each_prompt(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(trained.run)
    prompts = ["a red heart", "a cat, fluent style"]
    recipe_grid.main([run, run, "--names", "a", "b", "--prompts", *prompts, "--out", "new/grid.png"])
    assert capsys.readouterr().out == "new/grid.png: 2 models, 2 prompts, 8 seeds each\n"

    model = imagen_pl.load(trained.run)
    with Image.open("new/grid.png") as saved:
        sheet = saved.convert("RGB")
    strips = [strip(model.sample(p, seed=0, num_images=8, refine=0), recipe_grid.SIDE) for p in prompts]
    for column, wanted in enumerate(strips):
        left = recipe_grid.LABEL + column * (wanted.width + recipe_grid.GAP)
        for row in range(2):
            top = 20 + row * (wanted.height + 4)
            part = sheet.crop((left, top, left + wanted.width, top + wanted.height))
            # The file has 256 colours, and an untrained model draws more.
            apart = [
                np.abs(np.asarray(part, np.int16) - np.asarray(each, np.int16)).mean() for each in strips
            ]
            assert apart[column] < 0.5 * apart[1 - column]


def test_names_that_are_too_few_give_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        recipe_grid.main(["a", "b", "--names", "a", "--prompts", "x", "--out", str(Path("grid.png"))])
    assert "2 models but 1 names" in capsys.readouterr().err
