"""The benchmark of stability: its commands, what a good run is, and its table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import stability
from benchmarks.stability import Outcome

RECIPE = stability.REPOSITORY / "configs/experiment/icons32.yaml"


def test_command_multiplies_both_learning_rates(tmp_path: Path) -> None:
    words = stability.fit_words([RECIPE], 12_000, tmp_path, ["--trainer.precision=32-true"], 0.25, 2)

    assert "--model.generator_optimizer.init_args.lr=0.0005" in words
    assert "--model.discriminator_optimizer.init_args.lr=0.0002" in words
    assert {"--seed_everything=2", "--data.seed=2", "--trainer.precision=32-true"} <= set(words)


def test_recipe_must_name_its_learning_rates(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("data: {seed: 1}")
    with pytest.raises(SystemExit, match=r"no model.generator_optimizer.init_args.lr to multiply"):
        stability.learning_rates([tmp_path / "data.yaml"])


def test_command_parses_with_the_real_parser(tmp_path: Path) -> None:
    from imagen_pl.cli.training_cli import TrainingCLI

    words = stability.fit_words([RECIPE], 12_000, tmp_path, [], 4.0, 1)
    model = TrainingCLI(words[1:], run=False).model
    assert model.generator_optimizer([*model.generator.parameters()]).param_groups[0]["lr"] == 8e-3


@pytest.mark.parametrize(
    ("outcome", "good"),
    [
        (Outcome(1, 0, 130.0, 0.3, False), True),
        (Outcome(1, 0, 131.0, 0.3, False), False),
        (Outcome(1, 0, 100.0, 0.04, False), False),
        (Outcome(1, 0, 100.0, 0.3, True), False),
        (Outcome(1, 0, None, None, True), False),
    ],
    ids=["near the best", "far from it", "collapsed", "stopped late", "stopped early"],
)
def test_good_run_is_near_the_best_and_varied(outcome: Outcome, good: bool) -> None:
    assert outcome.is_good(best=100.0) is good


def test_table_counts_good_runs(tmp_path: Path) -> None:
    outcomes = [
        Outcome(0.5, 0, 100.0, 0.4, False),
        Outcome(0.5, 1, 120.0, 0.4, False),
        Outcome(4.0, 0, 200.0, 0.4, False),
        Outcome(4.0, 1, None, None, True),
    ]
    for i, each in enumerate(outcomes):
        (tmp_path / f"{i}.json").write_text(json.dumps(asdict(each)))

    lines = stability.table(stability.read(tmp_path)).splitlines()

    assert lines[2] == "| x 0.5 | **100.0 (0.40)** | **120.0 (0.40)** | 2 of 2 |"
    assert lines[3] == "| x 4 | 200.0 (0.40) | stopped | 0 of 2 |"
    assert lines[-1] == "Cells: Fréchet distance (latent share), bold if good: 2 of 4 runs (50%)."


def test_runs_that_are_there_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []

    def train(words: list[str], folder: Path, factor: float, seed: int) -> Outcome:
        trained.append((factor, seed))
        return Outcome(factor, seed, 100.0, 0.4, False)

    monkeypatch.setattr(stability, "train", train)
    command = ["stability", str(RECIPE), "--max_images", "100", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*command, "--factors", "1", "--seeds", "0"])
    stability.main()
    monkeypatch.setattr("sys.argv", [*command, "--factors", "1", "2", "--seeds", "0"])
    stability.main()

    assert trained == [(1.0, 0), (2.0, 0)]
    assert "good: 2 of 2 runs (100%)." in capsys.readouterr().out
