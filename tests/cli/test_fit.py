"""`imagen-pl fit` from the command line: folder, resume, stopping, and what it says of mistakes."""

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from imagen_pl.callbacks import run_length, sample_grid
from imagen_pl.callbacks.graceful_stop import GracefulStop
from imagen_pl.cli.main import main
from imagen_pl.imaging.grids import labelled_grid
from tests.helpers.commands import one_line_error
from tests.helpers.runs import Tiny

Told = Callable[[], tuple[str, str]]


def read(path: Path) -> dict[str, object]:
    return torch.load(path, map_location="cpu", weights_only=True)


def test_run_folder_has_all_files(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *tiny.words]) == 0
    run = tiny.run
    assert (run / "checkpoints/last.ckpt").is_file()
    assert (run / "checkpoints/best.ckpt").is_file()
    assert sorted(p.name for p in (run / "samples").iterdir())[-1] == "000000.2kimg.png"
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
    for line in more:  # as it stands, by the prior that it has
        assert " --refine 20 " in line
        assert main(shlex.split(line)[3:]) == 0
        with Image.open("more.png") as picture:
            assert picture.info["refine"] == "20"


class Watch:
    """A clock that each reading moves on by a twentieth of a second."""

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
    """A limit counts the run from its beginning, so the same command again would end at once."""
    monkeypatch.setattr(run_length, "time", Watch())
    assert main(["fit", *tiny.words, "--trainer.max_steps", "-1", *limits]) == 0
    output = capsys.readouterr().out.splitlines()
    assert f"The run is at its limit, {used_up}: raise it to train longer." in output
    (line,) = [line for line in output if line.startswith("Go on: ")]
    *words, value = shlex.split(line)
    assert words[-3:-1] == ["--ckpt_path", "last"]
    assert words[-1] == more.split()[0]
    assert value == more.split()[1] if ":" not in value else value >= more.split()[1]
    before = read(tiny.run / "checkpoints/last.ckpt")["images_seen"]
    assert main([*shlex.split(line)[3:-2]]) == 0  # the same limit again
    output = capsys.readouterr().out.splitlines()
    assert f"The run is at its limit, {used_up}: raise it to train longer." in output
    assert read(tiny.run / "checkpoints/last.ckpt")["images_seen"] == before
    assert main(shlex.split(line)[3:]) == 0
    assert read(tiny.run / "checkpoints/last.ckpt")["images_seen"] > before  # type: ignore[operator]


def test_stages_given_as_shares_reach_the_last_one_in_any_length(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the same stages in kimg end before it, which the run says at its start and at its end."""
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
    checkpoint = read(Path("runs/whole/checkpoints/last.ckpt"))
    assert (checkpoint["images_seen"], checkpoint["growth_resolution"]) == (48, 8)


def test_checkpoints_hold_the_clock_and_the_configuration(trained: Tiny) -> None:
    checkpoint = read(trained.run / "checkpoints/last.ckpt")
    assert checkpoint["images_seen"] == 160
    assert checkpoint["growth_resolution"] == 8
    assert yaml.safe_load(str(checkpoint["config"])) == yaml.safe_load(
        (trained.run / "config.yaml").read_text()
    )
    assert "hyper_parameters" not in checkpoint


def test_existing_run_is_not_overwritten(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained.run / "checkpoints/last.ckpt").read_bytes()
    output = one_line_error(["fit", *trained.words], capsys)
    assert output.startswith(f"error: {trained.run} already holds a run: ")
    assert (trained.run / "checkpoints/last.ckpt").read_bytes() == before


def test_existing_move_keeps_the_earlier_run(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained.run / "checkpoints/last.ckpt").read_bytes()
    assert main(["fit", *trained.words, "--existing", "move", "--trainer.max_steps", "4"]) == 0
    (moved,) = (path for path in trained.run.parent.iterdir() if path != trained.run)
    assert (moved / "checkpoints/last.ckpt").read_bytes() == before
    assert f"Kept the earlier run as {moved}" in capsys.readouterr().out
    assert read(trained.run / "checkpoints/last.ckpt")["images_seen"] == 8


def test_a_resumed_run_takes_the_new_learning_rate_and_keeps_the_old_configuration(trained: Tiny) -> None:
    words = ["fit", "--config", str(trained.run / "config.yaml"), "--ckpt_path", "last"]
    changed = ["--model.generator_optimizer.init_args.lr", "0.0625", "--trainer.max_steps", "60"]
    assert main([*words, *changed, "--trainer.log_every_n_steps", "1"]) == 0
    with (trained.run / "metrics.csv").open() as file:
        rows = {int(row["images_seen"]): row for row in csv.DictReader(file)}
    assert float(rows[160]["train/g_lr"]) == 0.001
    assert float(rows[168]["train/g_lr"]) == 0.0625
    assert float(rows[168]["train/d_lr"]) == 0.001
    config = yaml.safe_load((trained.run / "config.yaml").read_text())
    assert config["model"]["generator_optimizer"]["init_args"]["lr"] == 0.0625
    (kept,) = trained.run.glob("config-*.yaml")
    assert yaml.safe_load(kept.read_text())["model"]["generator_optimizer"]["init_args"]["lr"] == 0.001


def test_existing_resume_starts_or_continues(tiny: Tiny) -> None:
    words = ["fit", *tiny.words, "--existing", "resume"]
    assert main([*words, "--trainer.max_steps", "8"]) == 0
    assert read(tiny.run / "checkpoints/last.ckpt")["images_seen"] == 16
    assert main([*words, "--trainer.max_steps", "12"]) == 0
    assert read(tiny.run / "checkpoints/last.ckpt")["images_seen"] == 24


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ckpt_path", "none.ckpt"], "checkpoint none.ckpt: there is no such file"),
        (["--name", "other", "--ckpt_path", "last"], "holds no checkpoint to resume from"),
        (["--name", "a/b"], "--name 'a/b' must be a plain name"),
        (["--growth.stages", "[]"], "stages is empty: name at least one stage"),
        (["--growth.stagez", "3"], "unrecognized arguments: --growth.stagez 3"),
        (["--growth.kimg_scale", "-1"], "kimg_scale -1.0 must be more than 0"),
        (["--model.generator.init_args.style_dim", "wide"], "Expected a <class 'int'>. Got value: wide"),
        (["--model.accumulate", "0"], "model.accumulate 0 must be 1 or more"),
        (["--samples.columns", "0"], "samples.columns 0 must be 1 or more"),
        (["--checkpoint.mode", "best"], "checkpoint.mode"),
        (["--checkpoint.monitor", "val/fud"], "checkpoint.monitor val/fud is not among the scores"),
        (["--config", "none.yaml"], "none.yaml"),
        (
            [
                "--growth.stages",
                '[{"resolution": 8, "kimg": 1, "batch_size": 4}, '
                '{"resolution": 4, "kimg": 1, "batch_size": 4}]',
            ],
            "stages[1].resolution 4 does not grow on stages[0]'s 8: list the stages from small to large",
        ),
        (
            ["--growth.stages", '[{"resolution": 12, "kimg": 1, "batch_size": 4}]'],
            "stages[0].resolution 12 is not a power of two from 4 up",
        ),
        (
            ["--growth.stages", '[{"resolution": 8, "kimg": 1, "batch_size": 1}]'],
            "stages[0].batch_size 1 is too small",
        ),
    ],
)
def test_bad_input_gives_one_line(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["fit", *tiny.words, *words]) == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert output.startswith("error: ")
    assert message in output


def test_missing_configuration_gives_one_line_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 2
    assert capsys.readouterr().err.startswith("error: name a configuration with --config")


def test_failed_start_does_not_reserve_the_run_name(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *tiny.words, "--data.source.path", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["fit", *tiny.words, "--trainer.max_steps", "4"]) == 0


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_checkpoint_of_another_architecture_gives_one_line_error(
    verb: str, trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--ckpt_path", "last", "--model.generator.init_args.style_dim", "12"]
    words += ["--name", trained.run.name, "--runs_dir", str(trained.run.parent)]
    assert main([verb, *trained.words, *words]) == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert "last.ckpt holds another architecture: generator." in output
    assert "there and (" in output
    assert "more differ" in output


def test_corrupt_checkpoint_gives_one_line_error(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    path = trained.run / "checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    assert main(["fit", *trained.words, "--ckpt_path", str(path)]) == 2
    assert "last.ckpt cannot be read: it is damaged" in capsys.readouterr().err


def test_a_full_disk_stops_with_one_line_and_keeps_the_checkpoint_before_it(
    trained: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    path = trained.run / "checkpoints/last.ckpt"
    before = path.read_bytes()

    def full(checkpoint: object, file: object) -> None:
        file.write(b"the first part")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert main(["fit", *trained.words, "--ckpt_path", "last", "--trainer.max_steps", "60"]) == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert output.startswith("error: cannot write ")
    assert "no space left on the disk (the one before it is whole)" in output
    assert path.read_bytes() == before


def test_a_loss_that_is_not_finite_stops_with_a_checkpoint(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *tiny.words, "--model.generator_optimizer.init_args.lr", "1e38"]) == 1
    output = capsys.readouterr().err
    assert "stopped: " in output
    assert "images seen" in output
    checkpoint = read(tiny.run / "checkpoints/stopped.ckpt")
    weights = checkpoint["state_dict"]
    assert isinstance(weights, dict)
    assert f"The weights before it are in {tiny.run}/checkpoints/stopped.ckpt" in output


# ---------------------------------------------------------------------- signals


def test_second_ctrl_c_says_what_is_saved(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the second Ctrl-C, which waits for nothing."""
    assert main(["fit", *tiny.words, "--name", "saved", "--trainer.max_steps", "4"]) == 0

    def hurry(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(GracefulStop, "on_train_batch_end", hurry)
    assert main(["fit", *tiny.words]) == 130
    assert capsys.readouterr().out.splitlines()[-1] == "Stopped at once. Nothing was saved yet."
    assert main(["fit", *tiny.words, "--name", "saved", "--ckpt_path", "last"]) == 130
    assert capsys.readouterr().out.splitlines()[-1] == (
        "Stopped at once. Resume from runs/saved/checkpoints/last.ckpt: "
        "imagen-pl fit --config runs/saved/config.yaml --ckpt_path last"
    )


def start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "imagen_pl.cli.main", "fit", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for(path: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(2400):
        if path.exists() and text in path.read_text():
            return
        assert process.poll() is None, path.read_text() if path.exists() else "it ended"
        time.sleep(0.05)
    raise AssertionError(f"{text!r} did not come")


@pytest.mark.parametrize(
    ("signum", "workers", "code"), [(signal.SIGINT, 2, 130), (signal.SIGTERM, 0, 143)], ids=["int", "term"]
)
def test_a_signal_saves_and_the_printed_command_resumes(
    tiny: Tiny, tmp_path: Path, signum: int, workers: int, code: int
) -> None:
    log = tmp_path / "log"
    process = start([*tiny.words, "--trainer.max_steps", "100000", "--data.num_workers", str(workers)], log)
    wait_for(tiny.run / "metrics.csv", "\n", process)
    wait_for(log, "kimg", process)
    os.killpg(process.pid, signum)  # as a terminal or a cluster does: to the workers too
    assert process.wait(timeout=120) == code
    *_, stopped, resume = log.read_text().splitlines()
    checkpoint = read(tiny.run / "checkpoints/last.ckpt")
    seen = int(str(checkpoint["images_seen"]))
    assert stopped == f"Stopped at {seen:,} images; saved {tiny.run}/checkpoints/last.ckpt"
    assert resume.startswith("Resume: imagen-pl fit ")
    steps = int(str(checkpoint["global_step"])) + 8
    words = resume.removeprefix("Resume: imagen-pl ").split()
    assert main([*words, "--trainer.max_steps", str(steps), "--data.num_workers", "0"]) == 0
    assert int(str(read(tiny.run / "checkpoints/last.ckpt")["images_seen"])) == seen + 16
