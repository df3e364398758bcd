"""What stops `imagen-pl fit` midway: a full disk, a loss that is not finite, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from imagen_pl.callbacks.graceful_stop import GracefulStop
from imagen_pl.cli.main import main
from tests.helpers.runs import Tiny, read_state


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
    assert "no space left on the disk (the previous file is unchanged)" in output
    assert path.read_bytes() == before


def test_a_loss_that_is_not_finite_stops_with_a_checkpoint(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *tiny.words, "--model.generator_optimizer.init_args.lr", "1e38"]) == 1
    output = capsys.readouterr().err
    assert "stopped: " in output
    assert "images seen" in output
    checkpoint = read_state(tiny.run / "checkpoints/stopped.ckpt")
    weights = checkpoint["state_dict"]
    assert isinstance(weights, dict)
    assert f"The weights before it are in {tiny.run}/checkpoints/stopped.ckpt" in output


def test_second_ctrl_c_says_what_is_saved(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the second Ctrl-C, without waiting."""
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
    checkpoint = read_state(tiny.run / "checkpoints/last.ckpt")
    seen = int(str(checkpoint["images_seen"]))
    assert stopped == f"Stopped at {seen:,} images; saved {tiny.run}/checkpoints/last.ckpt"
    assert resume.startswith("Resume: imagen-pl fit ")
    steps = int(str(checkpoint["global_step"])) + 8
    words = resume.removeprefix("Resume: imagen-pl ").split()
    assert main([*words, "--trainer.max_steps", str(steps), "--data.num_workers", "0"]) == 0
    assert int(str(read_state(tiny.run / "checkpoints/last.ckpt")["images_seen"])) == seen + 16
