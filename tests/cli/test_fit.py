"""`imagen-pl fit` from the command line: the run folder, its limits, and what it prints at the end."""

import csv
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from imagen_pl.callbacks import run_length, sample_grid
from imagen_pl.cli.main import main
from imagen_pl.imaging.grids import labelled_grid
from tests.helpers.runs import Tiny, read_state


def test_run_folder_has_all_files(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *tiny.words]) == 0
    run = tiny.run
    assert (run / "checkpoints/last.ckpt").is_file()
    assert (run / "checkpoints/best.ckpt").is_file()
    assert sorted(p.name for p in (run / "samples").glob("*.png"))[-1] == "000000.2kimg.png"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["name"] == "tiny"
    assert "ckpt_path" not in config
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert next(iter(rows[0])) == "images_seen"
    clocks = [int(row["images_seen"]) for row in rows]
    assert clocks == sorted(clocks)
    assert clocks[-1] == 160
    needed = {"train/d_loss", "train/g_loss", "train/d_margin", "train/g_grad_norm", "train/d_grad_norm"}
    assert needed | {"growth/stage", "growth/resolution", "growth/fade"} <= rows[0].keys()
    output = capsys.readouterr().out
    assert "Trained on 160 images." in output
    assert f"imagen-pl fit --config {tiny.run}/config.yaml --ckpt_path last" in output


def test_a_dry_run_says_what_it_does_and_writes_no_run(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *tiny.words, "--trainer.fast_dev_run", "2"]) == 0
    output = capsys.readouterr().out
    assert "Dry run (trainer.fast_dev_run 2): a few batches of training and validation" in output
    assert "The dry run has ended without an error. Train: leave out trainer.fast_dev_run.\n" in output
    assert not tiny.run.exists()


def test_diversity_and_memorisation_are_scores_of_validation(tiny: Tiny) -> None:
    scores = [
        {"class_path": "Diversity", "init_args": {"captions": 2, "pictures": 2}},
        {"class_path": "Memorisation", "init_args": {"training_images": 8}},
    ]
    for score in scores:
        score["class_path"] = f"imagen_pl.metrics.feature_scores.{score['class_path']}"
    metric = {"class_path": "imagen_pl.metrics.feature_scores.FeatureScores", "init_args": {"scores": scores}}
    Path("scores.yaml").write_text(
        yaml.safe_dump({"model": {"metrics": [metric]}, "checkpoint": {"monitor": None}})
    )
    assert main(["fit", *tiny.words, "--config", "scores.yaml"]) == 0
    with (tiny.run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/diversity_efficientnet_lite0")]
    assert rows
    for row in rows:
        assert 0 < float(row["val/diversity_efficientnet_lite0"]) < 3
        assert 0 < float(row["val/memorisation_ratio_efficientnet_lite0"]) < 100
        assert 0 <= float(row["val/memorisation_near_efficientnet_lite0"]) <= 1


@pytest.mark.parametrize(("given", "drawn"), [("null", 12), ("[]", 0), ("[a cat]", 1)])
def test_sample_grid_uses_captions_of_the_data_by_default(
    tiny: Tiny,
    photos: Path,
    given: str,
    drawn: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of twelve images four are held out: eight of each at most, so all."""
    asked: list[list[str]] = []

    def recorded(pictures: list[Image.Image], captions: list[str], columns: int) -> Image.Image:
        asked.append(captions)
        return labelled_grid(pictures, captions, columns)

    monkeypatch.setattr(sample_grid, "labelled_grid", recorded)
    assert main(["fit", *tiny.words, "--samples.captions", given, "--trainer.max_steps", "8"]) == 0
    assert [len(captions) for captions in asked] == ([drawn] if drawn else [])
    written = {path.read_text().strip() for path in photos.glob("*.txt")}
    assert given != "null" or set(asked[0]) == written
    assert given != "[a cat]" or asked == [["a cat"]]
    output = capsys.readouterr().out
    more = [line for line in output.splitlines() if line.startswith("Draw more: ")]
    assert len(more) == (drawn > 0)
    for line in more:  # unchanged, with its prior
        assert " --refine 20 " in line
        assert main(shlex.split(line)[3:]) == 0
        with Image.open("more.png") as picture:
            assert picture.info["refine"] == "20"


class Watch:
    """A clock that moves by a twentieth of a second at each reading."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 0.05
        return self.now


@pytest.mark.parametrize(
    ("limits", "used_up", "more"),
    [
        (
            ["--trainer.max_time", "00:00:00:02"],
            "--trainer.max_time 00:00:00:02",
            "--trainer.max_time 00:00:00:04",
        ),
        (["--max_images", "24"], "--max_images 24", "--max_images 48"),
        (["--trainer.max_steps", "8"], "--trainer.max_steps 8", "--trainer.max_steps 16"),
        (["--trainer.max_epochs", "1"], "--trainer.max_epochs 1", "--trainer.max_epochs 2"),
    ],
    ids=["time", "images", "steps", "epochs"],
)
def test_a_finished_run_names_its_limit_and_the_command_that_trains_longer(
    limits: list[str],
    used_up: str,
    more: str,
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A limit counts from the beginning of the run, so the same command again ends at once."""
    monkeypatch.setattr(run_length, "time", Watch())
    assert main(["fit", *tiny.words, "--trainer.max_steps", "-1", *limits]) == 0
    output = capsys.readouterr().out.splitlines()
    assert f"The run is at its limit, {used_up}: raise it to train longer." in output
    (line,) = [line for line in output if line.startswith("Go on: ")]
    *words, value = shlex.split(line)
    assert words[-3:-1] == ["--ckpt_path", "last"]
    assert words[-1] == more.split()[0]
    assert value == more.split()[1] if ":" not in value else value >= more.split()[1]
    before = read_state(tiny.run / "checkpoints/last.ckpt")["images_seen"]
    assert main([*shlex.split(line)[3:-2]]) == 0  # the same limit again
    output = capsys.readouterr().out.splitlines()
    assert f"The run is at its limit, {used_up}: raise it to train longer." in output
    assert read_state(tiny.run / "checkpoints/last.ckpt")["images_seen"] == before
    assert main(shlex.split(line)[3:]) == 0
    assert read_state(tiny.run / "checkpoints/last.ckpt")["images_seen"] > before  # type: ignore[operator]


def test_stages_given_as_shares_reach_the_last_one_in_any_length(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stages in kimg end before the last one, with a message at the start and at the end."""
    short = ["--trainer.max_steps", "-1", "--max_images", "48"]
    assert main(["fit", *tiny.words, *short, "--name", "cut"]) == 0
    output = capsys.readouterr()
    assert "warning: this run will see about 48 images and end at 4 px, in stage 1 of 2" in output.err
    assert "It ended at 4 px, before the stage of 8 px" in output.out
    stages = "[{resolution: 4, share: 0.5, batch_size: 4}, {resolution: 8, batch_size: 8, fade_share: 0.2}]"
    assert main(["fit", *tiny.words, *short, "--name", "whole", "--growth.stages", stages]) == 0
    output = capsys.readouterr()
    assert "warning" not in output.err
    assert "It ended at" not in output.out
    checkpoint = read_state(Path("runs/whole/checkpoints/last.ckpt"))
    assert (checkpoint["images_seen"], checkpoint["growth_resolution"]) == (48, 8)


def test_checkpoints_hold_the_clock_and_the_configuration(trained: Tiny) -> None:
    checkpoint = read_state(trained.run / "checkpoints/last.ckpt")
    assert checkpoint["images_seen"] == 160
    assert checkpoint["growth_resolution"] == 8
    assert yaml.safe_load(str(checkpoint["config"])) == yaml.safe_load(
        (trained.run / "config.yaml").read_text()
    )
    assert "hyper_parameters" not in checkpoint
