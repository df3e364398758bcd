"""Whole recipes, with every default and linked size filled in, are as they were when measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagen_pl.cli.training_cli import TrainingCLI
from tests.helpers.runs import REPOSITORY

# From commit af54387, with today's names. Change a recipe together with this file, and measure it.
MEASURED: dict[str, Any] = json.loads((REPOSITORY / "tests/files/recipes.json").read_text())


def differences(measured: Any, now: Any, where: str = "") -> list[str]:
    """Settings that differ. Settings that came later are left out: their defaults change nothing."""
    if isinstance(measured, dict) and isinstance(now, dict):
        found = [f"{where}.{key} is gone" for key in measured if key not in now]
        for key in measured.keys() & now.keys():
            found += differences(measured[key], now[key], f"{where}.{key}")
        return found
    if isinstance(measured, list) and isinstance(now, list) and len(measured) == len(now):
        return [
            d
            for i, pair in enumerate(zip(measured, now, strict=True))
            for d in differences(*pair, f"{where}[{i}]")
        ]
    return [] if measured == now else [f"{where} is {now}, was {measured}"]


@pytest.mark.parametrize("recipe", MEASURED)
def test_recipe_settings_equal_those_of_the_measured_run(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TrainingCLI, "instantiate_classes", lambda self: None)
    files = [str(REPOSITORY / "configs" / file) for file in MEASURED[recipe]["files"]]

    cli = TrainingCLI([word for file in files for word in ("--config", file)], run=False)

    now = json.loads(json.dumps(yaml.safe_load(cli.configuration())))
    assert differences(json.loads(json.dumps(MEASURED[recipe]["settings"])), now) == []
