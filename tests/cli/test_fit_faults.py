"""Faults outside the run: W&B, a full disk, damaged files, the system clock."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from mlflow.exceptions import MlflowException

from imagen_pl.cli.main import main
from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.storage.run_folder import RunFolder
from imagen_pl.training.logger_faults import survive_tracker
from tests.helpers.commands import one_line_error
from tests.helpers.runs import Tiny, read_state

WANDB = ["--trainer.logger", "WandbLogger", "--trainer.logger.project", "test"]


# ------------------------------------------------------------------ W&B


def test_unreachable_wandb_records_offline(
    tiny: Tiny, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    wandb.finish()  # a run of an earlier test in this process, which the logger would continue
    real = WandbLogger.experiment.fget  # type: ignore[attr-defined]

    def unreachable(logger: WandbLogger) -> object:
        if logger._wandb_init.get("mode") != "offline":
            raise wandb.errors.CommError("connection refused\nwhile retrying")
        return real(logger)

    monkeypatch.setattr(WandbLogger, "experiment", property(unreachable))
    assert main(["fit", *tiny.words, *WANDB, "--trainer.max_steps", "8"]) == 0
    assert list((tiny.run / "wandb").glob("offline-run-*"))
    wandb.finish()
    lines = [record.getMessage() for record in caplog.records if "W&B cannot" in record.getMessage()]
    assert lines == [
        "W&B cannot be reached (connection refused while retrying): recording offline; "
        "upload with `wandb sync`"
    ]


@pytest.mark.parametrize(
    ("logger", "error", "survived"),
    [
        (WandbLogger, ConnectionResetError("lost"), True),
        (MLFlowLogger, MlflowException("lost"), True),
        (MLFlowLogger, TimeoutError("lost"), True),
        (WandbLogger, TypeError("an error of this program"), False),
        (TensorBoardLogger, OSError("disk full"), False),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
def test_only_errors_of_a_tracker_s_service_are_survived(
    logger: type, error: Exception, survived: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with nullcontext() if survived else pytest.raises(type(error)), survive_tracker(object.__new__(logger)):
        raise error
    assert ("training continues" in caplog.text) is survived


def test_a_wandb_failure_during_training_does_not_stop_the_run(
    tiny: Tiny, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    wandb.finish()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    calls = []

    def failing(*_: object, **__: object) -> None:
        calls.append(1)
        if len(calls) > 3:
            raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(WandbLogger, "log_metrics", failing)
    assert main(["fit", *tiny.words, *WANDB, "--trainer.max_steps", "24"]) == 0
    assert len(calls) > 5
    lines = [record.getMessage() for record in caplog.records if "W&B has failed" in record.getMessage()]
    assert lines == [
        "W&B has failed (ConnectionResetError: Connection lost): training continues; "
        "metrics.csv has all values"
    ]
    assert read_state(tiny.run / "checkpoints/last.ckpt")["images_seen"] == 48


# ------------------------------------------------------------------ the disk


@pytest.fixture
def _full_disk() -> Iterator[None]:
    """Limits files to 30 kB: writing more fails, as on a full disk."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, most))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@pytest.mark.parametrize(
    ("captions", "name"), [(1, "checkpoints/best.ckpt"), (400, "samples/000000.0kimg.png")]
)
@pytest.mark.usefixtures("_full_disk")
def test_a_full_disk_gives_one_line_and_leaves_no_part_files(
    captions: int, name: str, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = {"samples": {"captions": ["a cat"] * captions, "every_kimg": 0.004}}
    Path("samples.yaml").write_text(yaml.safe_dump(samples))
    assert main(["fit", *tiny.words, "--config", "samples.yaml"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: cannot write ")
    assert f"runs/tiny/{name}: no space left on the disk (nothing was written)" in line
    assert not list(tiny.run.rglob(".*.part"))


def test_a_folder_that_cannot_be_written_gives_one_line(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even root can create a folder in /sys."""
    line = one_line_error(["fit", *tiny.words, "--runs_dir", "/sys/runs"], capsys)
    assert "/sys/runs" in line
    reasons = ("Read-only file system", "Permission denied", "Operation not permitted")
    assert any(reason in line for reason in reasons)


def test_part_files_of_a_killed_run_are_removed_at_the_next_start(trained: Tiny) -> None:
    left = trained.run / "checkpoints/.last.ckpt.123.part"
    left.write_bytes(b"half")
    assert main(["fit", *trained.words, "--ckpt_path", "last", "--trainer.max_steps", "60"]) == 0
    assert not left.exists()


# ------------------------------------------------------------------ non-finite numbers


def test_a_non_finite_gradient_stops_with_one_line(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite, but its gradient is not: sqrt at 0."""
    right = NonSaturating.generator
    calls = []

    def broken(self: NonSaturating, *logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        loss = right(self, *logits)
        return loss + (loss - loss.detach()).sqrt() if len(calls) > 4 else loss

    monkeypatch.setattr(NonSaturating, "generator", broken)
    words = [*tiny.words, "--model.adversarial", "imagen_pl.losses.adversarial.NonSaturating"]
    assert main(["fit", *words]) == 1
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("stopped: "))
    assert "g_grad_norm became nan at 16 images seen (4 px): try a lower learning rate" in line
    weights = read_state(tiny.run / "checkpoints/stopped.ckpt")["state_dict"]
    assert isinstance(weights, dict)
    assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())


# ------------------------------------------------------------------ damaged files


def test_a_damaged_checkpoint_gives_one_line(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    path = trained.run / "checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:5000])
    os.utime(path)
    output = one_line_error(["fit", *trained.words, "--ckpt_path", "last"], capsys)
    assert "last.ckpt cannot be read: it is damaged, truncated or not a checkpoint" in output


def test_a_damaged_cache_of_captions_gives_one_line(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEN_PL_CACHE", str(tmp_path / "cache"))
    assert main(["fit", *tiny.words, "--trainer.max_steps", "4", "--name", "first"]) == 0
    (cache,) = (tmp_path / "cache/text").glob("*.sqlite")
    cache.write_bytes(b"garbage" * 1000)
    assert main(["fit", *tiny.words, "--trainer.max_steps", "4"]) == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert output.startswith(f"error: the cache of encoded captions {cache} is damaged (")
    assert output.endswith(": delete it")


# ------------------------------------------------------------------ the system clock


def test_system_clock_changes_affect_neither_time_limit_nor_newest_checkpoint(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`time.time` jumps a day back and forth during training; an older checkpoint is dated tomorrow."""
    start, calls = time.time(), []

    def jumping() -> float:
        calls.append(1)
        return start + 86_400 * (-1) ** len(calls)

    assert main(["fit", *tiny.words, "--trainer.max_steps", "4"]) == 0
    best = tiny.run / "checkpoints/best.ckpt"
    shutil.copy(tiny.run / "checkpoints/last.ckpt", best)
    os.utime(best, (start + 86_400, start + 86_400))
    monkeypatch.setattr(time, "time", jumping)
    more = ["--ckpt_path", "last", "--trainer.max_steps", "12", "--trainer.max_time", "00:00:05:00"]
    assert main(["fit", *tiny.words, *more]) == 0
    newest = RunFolder(tiny.run).newest_checkpoint()
    assert newest is not None
    assert newest.name == "last.ckpt"
    assert read_state(newest)["images_seen"] == 24
