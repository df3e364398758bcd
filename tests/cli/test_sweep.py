"""configs/tracking/sweep.yaml: W&B accepts the sweep, and the command line accepts its trials."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagen_pl.cli.training_cli import TrainingCLI
from tests.helpers.runs import REPOSITORY

FILE = REPOSITORY / "configs/tracking/sweep.yaml"
# Only W&B's servers check a sweep, so this repeats the part of their schema that the file uses.
TOP = {"name", "project", "program", "method", "metric", "run_cap"}
TOP |= {"early_terminate", "command", "parameters"}
DISTRIBUTIONS = {"log_uniform_values", "uniform"}


@pytest.fixture(scope="module")
def sweep() -> dict[str, Any]:
    from wandb.sdk.launch.sweeps.utils import load_sweep_config

    config = load_sweep_config(str(FILE))
    assert config is not None
    return config


def choices(parameter: dict[str, Any]) -> list[Any]:
    """Its ends, and what an agent's number looks like in between; or all its values."""
    if "values" in parameter:
        return list(parameter["values"])
    low, high = parameter["min"], parameter["max"]
    return [low, high, low + (high - low) * 0.123456789012345]


def agent_words(sweep: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    """The command line of a trial, put together as `wandb agent` does, after `imagen-pl`."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    known = create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
    known |= {"env": ["/usr/bin/env"], "program": [sweep["program"]]}
    words: list[str] = []
    for word in map(str, create_sweep_command(list(sweep["command"]))):
        macro = re.fullmatch(r"\$\{(.*)\}", word)
        words += known[macro[1]] if macro else [word]
    assert words[:3] == ["/usr/bin/env", "imagen-pl", "fit"]
    return words[3:]


def test_sweep_file_is_valid(sweep: dict[str, Any]) -> None:
    assert sweep.keys() == TOP
    assert sweep["method"] in ("bayes", "random", "grid")
    assert sweep["metric"] == {"name": "val/fd_efficientnet_lite1", "goal": "minimize"}
    assert sweep["early_terminate"].keys() <= {"type", "min_iter", "eta", "strict"}
    assert sweep["early_terminate"]["type"] == "hyperband"
    assert isinstance(sweep["early_terminate"]["min_iter"], int)
    assert isinstance(sweep["run_cap"], int)
    for name, parameter in sweep["parameters"].items():
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name)
        if "values" in parameter:
            assert parameter.keys() == {"values"}
        else:
            assert parameter.keys() == {"distribution", "min", "max"}
            assert parameter["distribution"] in DISTRIBUTIONS
            assert all(isinstance(parameter[end], float) for end in ("min", "max"))
            assert parameter["min"] < parameter["max"]
            assert parameter["min"] > 0 or "log" not in parameter["distribution"]


def test_sweep_uses_the_project_and_metric_of_its_configs(sweep: dict[str, Any]) -> None:
    files = [word for word in sweep["command"] if word.endswith(".yaml")]
    base, tracking = (yaml.safe_load((REPOSITORY / file).read_text()) for file in files)
    assert sweep["project"] == tracking["trainer"]["logger"][0]["init_args"]["project"]
    assert sweep["metric"]["name"] == base["checkpoint"]["monitor"]


@pytest.mark.parametrize("place", range(3))
def test_every_trial_s_arguments_parse(
    sweep: dict[str, Any], place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real parser, networks built, and each value in its place."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    monkeypatch.chdir(REPOSITORY)
    chosen = {name: choices(parameter)[place] for name, parameter in sweep["parameters"].items()}
    words = [*agent_words(sweep, chosen), f"--runs_dir={tmp_path}"]
    cli = TrainingCLI(words, run=False)

    for name, value in chosen.items():
        if name != "growth.stages":
            assert cli.config[name] == pytest.approx(value), name
    (stage,) = cli.config.growth.stages
    assert vars(stage).items() >= yaml.safe_load(chosen["growth.stages"])[0].items()
    assert cli.model.generator.text_noise == pytest.approx(chosen["model.generator.init_args.text_noise"])
    assert cli.datamodule.epoch_images == 8000
    # Trials side by side get folders and ids of their own.
    assert (cli.run_folder.path, cli.run_id) == (tmp_path / "quickstart-trial7", "trial7")
