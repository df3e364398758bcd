"""`imagen-pl fit` where a run exists already: it is kept, moved or resumed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from imagen_pl.cli.main import main
from tests.helpers.commands import one_line_error
from tests.helpers.runs import Tiny, read_state
from tests.storage.test_run_lock import another_process


def test_existing_run_is_not_overwritten(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained.run / "checkpoints/last.ckpt").read_bytes()
    output = one_line_error(["fit", *trained.words], capsys)
    assert output.startswith(f"error: {trained.run} already contains a run: ")
    assert (trained.run / "checkpoints/last.ckpt").read_bytes() == before


def test_existing_move_keeps_the_earlier_run(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained.run / "checkpoints/last.ckpt").read_bytes()
    assert main(["fit", *trained.words, "--existing", "move", "--trainer.max_steps", "4"]) == 0
    (moved,) = (path for path in trained.run.parent.iterdir() if path != trained.run)
    assert (moved / "checkpoints/last.ckpt").read_bytes() == before
    assert f"Kept the earlier run as {moved}" in capsys.readouterr().out
    assert read_state(trained.run / "checkpoints/last.ckpt")["images_seen"] == 8


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
    assert read_state(tiny.run / "checkpoints/last.ckpt")["images_seen"] == 16
    assert main([*words, "--trainer.max_steps", "12"]) == 0
    assert read_state(tiny.run / "checkpoints/last.ckpt")["images_seen"] == 24


def test_a_run_that_another_process_trains_is_refused(
    trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --ckpt_path, with --existing move, and without either; no file changes."""

    def files() -> list[Path]:
        return [path for path in sorted(trained.run.rglob("*")) if path.name != ".lock"]

    before = files()
    with another_process(trained.run):
        for more in (["--ckpt_path", "last"], ["--existing", "move"], []):
            output = one_line_error(["fit", *trained.words, *more], capsys)
            assert output.startswith(f"error: {trained.run} is being trained by another process (process ")
    assert files() == before


def test_the_configuration_of_a_moved_run_refers_to_that_run(
    trained: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = trained.run.rename(trained.run.parent / "elsewhere")
    words = ["--config", str(moved / "config.yaml"), "--ckpt_path", "last"]
    assert main(["fit", *words, "--trainer.max_steps", "60"]) == 0
    assert read_state(moved / "checkpoints/last.ckpt")["images_seen"] == 176
    assert f"Go on: imagen-pl fit --config {moved}/config.yaml --ckpt_path last" in capsys.readouterr().out
    monkeypatch.chdir(moved)
    assert main(["fit", "--config", "config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "64"]) == 0
    assert read_state(Path("checkpoints/last.ckpt"))["images_seen"] == 192
    words = ["fit", "--config", "config.yaml", "--name", "other", "--runs_dir", "runs"]
    assert main([*words, "--trainer.max_steps", "4"]) == 0
    assert Path("runs/other/checkpoints/last.ckpt").is_file()
