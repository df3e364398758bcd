"""The ablation's grid, its commands and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablation


def _result(name: str, seed: int, fd: float | None) -> dict[str, Any]:
    result: dict[str, Any] = {"name": name, "seed": seed, "images_per_second": 100.0, "images_seen": 24_000}
    if fd is not None:
        found = {"top1": 0.1, "top5": 0.3}
        result["score"] = {
            "fd": fd,
            "kd": 0.1,
            "retrieval": found,
            "test_retrieval": found,
            "shuffled": found,
        }
    return result


GRIDS = sorted((ablation.REPOSITORY / "benchmarks").glob("*/*_grid.yaml"))


def test_features_are_measured_in_long_enough_runs() -> None:
    grid = ablation.read_grid(ablation.GRID)

    assert {"all off", "growing", "in turn", "captioning", "self-supervision", "all on"} <= grid.runs.keys()
    assert grid.minutes >= 4
    assert len(grid.seeds) >= 3


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_every_run_has_its_files_and_a_table(file: Path) -> None:
    grid = ablation.read_grid(file)

    assert all(mark in ablation.REPORT.read_text() for mark in grid.marks)
    missing = [
        f
        for files in (grid.base, *grid.runs.values())
        for f in files
        if not (ablation.REPOSITORY / f).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_every_run_s_command_parses(file: Path, tmp_path: Path) -> None:
    """With the real parser, networks built; the seed sets weights, latents and order."""
    from imagen_pl.cli.training_cli import TrainingCLI

    grid = ablation.read_grid(file)
    for name in grid.runs:
        words = ablation.fit_command(grid, ablation.Run(name, 7), tmp_path)[2:]
        assert words[0] == "fit"
        cli = TrainingCLI(words[1:], run=False)
        assert (cli.config.seed_everything, cli.model.seed, cli.datamodule.train_processing.seed) == (7, 7, 7)
        words_of_growth = ("progressive", "growing")
        files = [*grid.base, *grid.runs[name]]
        grows = any(word in file for file in files for word in words_of_growth)
        stages = cli.config.growth.stages
        assert (stages[0].resolution < stages[-1].resolution) == grows


def test_speed_is_images_over_time() -> None:
    speed = "train/images_per_second"
    rows = [{"images_seen": 0.0}, {"images_seen": 100.0, speed: 50.0}, {"images_seen": 400.0, speed: 100.0}]

    assert ablation.images_per_second(rows) == pytest.approx(400 / (2 + 3))


def test_curves_are_means_of_stretches() -> None:
    rows = [{"images_seen": float(i), "train/d_loss": float(i), "growth/fade": 1.0} for i in range(120)]

    found = ablation.curves(rows)

    assert list(found) == ["train/d_loss"]
    assert len(found["train/d_loss"]) == ablation.POINTS
    assert found["train/d_loss"][0] == [1.0, 0.5]
    assert found["train/d_loss"][-1] == [119.0, 118.5]


def test_table_has_mean_spread_and_diverged_runs() -> None:
    grid = ablation.Grid("pillars", 4, [0, 1], [], "x", {"all off": [], "growing": [], "never run": []})
    results = [
        _result("growing", 0, 100.0),
        _result("growing", 1, 110.0),
        _result("all off", 0, 150.0),
        _result("all off", 1, None),
    ]

    head, _, first, second = ablation.table(grid, results).splitlines()

    assert head.startswith("| run | seeds | images/s | images seen | FD |")
    assert first.startswith("| all off | 1, 1 diverged | 100 | 24,000 | 150.0 |")
    assert second.startswith("| growing | 2 | 100 ± 0 | 24,000 ± 0 | 105.0 ± 7.1 |")


def test_table_of_icons_has_their_own_columns() -> None:
    grid = ablation.Grid("icons", 4, [0], [], "x", {"a": [], "b": []}, icons="icons64")
    named = {"train": (0.1, 0.3), "pairs": (0.1, 0.2), "subjects": (0.0, 0.1)}
    score = {
        "frechet": 66.04,
        "diversity": {"diversity": 0.891, "latent_share": 0.6},
        "named": named,
        "pair_accuracy": {"number, learnt": (0.5, 100), "negation, learnt": (1.0, 300)},
        "set": (0.14, 300),
        "kind": (0.51, 200),
    }
    result = {"name": "a", "seed": 0, "images_per_second": 30.4, "images_seen": 9000, "score": score}

    later = {"name": "b", "seed": 0, "diverged": False}  # trained with --score_later

    head, _, row = ablation.table(grid, [result, later]).splitlines()

    assert head.split(" | ")[6:9] == ["latent share", "learnt names", "new pairs"]
    assert row == "| a | 1 | 30 | 9,000 | 66.0 | 0.89 | 0.60 | 30% | 20% | 10% | 87.5% | 14% | 51% |"


def test_icons_are_scored_together_after_the_last_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "RESULTS", tmp_path)
    grid = ablation.Grid("icons", 4, [0, 1], [], "lite1", {"a": []}, icons="icons64")
    grid.results.mkdir()
    runs = [ablation.Run("a", seed) for seed in (0, 1, 2, 3)]
    for run in runs:
        result = _result("a", run.seed, 1.0 if run.seed == 1 else None) | {"diverged": run.seed == 2}
        ablation.write_result(grid, run, result)
    asked: list[list[str]] = []

    def scored(words: list[str], **options: Any) -> None:
        asked.append(words)
        scores = [{"name": name, "frechet": float(i)} for i, name in enumerate(("real", "a-0", "a-3"))]
        report = {"machine": {"cpu": "x"}, "extractor": "lite1", "scores": scores}
        Path(words[words.index("--out") + 1]).write_text(json.dumps(report))

    monkeypatch.setattr(ablation.subprocess, "run", scored)
    ablation.score_icons(grid, runs, tmp_path)
    ablation.score_icons(grid, runs, tmp_path)

    assert len(asked) == 1
    assert asked[0][2:5] == ["benchmarks.icons", str(tmp_path / "a-0"), str(tmp_path / "a-3")]
    assert asked[0][-2:] == ["--icons", "icons64"]
    kept = {run.seed: json.loads(run.result(grid).read_text()) for run in runs}
    assert [kept[seed].get("score", {}).get("frechet") for seed in (0, 2, 3)] == [1.0, None, 2.0]
    assert kept[0]["extractor"] == "lite1"
    assert kept[1]["score"]["fd"] == 1.0


def test_table_is_written_between_its_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "RESULTS", tmp_path)
    grid = ablation.Grid("pillars", 4, [0], [], "x", {"growing": []})
    grid.results.mkdir()
    (grid.results / "growing-0.json").write_text(json.dumps(_result("growing", 0, 99.0)))
    report = tmp_path / "RESULTS.md"
    report.write_text("above\n<!-- pillars: begin -->\nold\n<!-- pillars: end -->\nbelow\n")

    ablation.write_report(grid, report)

    text = report.read_text()
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    assert "| growing | 1 |" in text
    assert "old" not in text
    report.write_text("no marks")
    with pytest.raises(SystemExit, match="has no place for the table"):
        ablation.write_report(grid, report)
