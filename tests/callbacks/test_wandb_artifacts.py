"""When WandbArtifacts uploads, and that neither W&B nor the network can stop training."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from imagen_pl.callbacks import wandb_artifacts as artifacts
from imagen_pl.callbacks.checkpoint import KeepCheckpoints
from imagen_pl.callbacks.wandb_artifacts import WandbArtifacts
from imagen_pl.errors import UserError

Logged = list[tuple[str, list[str], int]]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Logged:
    """File, aliases and clock of each upload."""
    seen: Logged = []

    def log_model(run: Any, name: str, path: Path, aliases: list[str], metadata: dict[str, Any]) -> None:
        assert name == "model-small-r1"
        seen.append((path.stem, aliases, metadata["images_seen"]))

    monkeypatch.setattr(artifacts, "log_model", log_model)
    return seen


def write(folder: Path, **clocks: int) -> Any:
    """A run's checkpoints by name and clock, and a trainer with them."""
    keeper = KeepCheckpoints(monitor="val/score")
    for name, clock in clocks.items():
        path = folder / f"small/checkpoints/{name}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": {}, "images_seen": clock, "growth_resolution": 8}, path)
    keeper.best_model_path = str(folder / "small/checkpoints/best.ckpt") if "best" in clocks else ""
    keeper.last_model_path = str(folder / "small/checkpoints/last.ckpt")
    return SimpleNamespace(
        callbacks=[keeper], default_root_dir=str(folder / "small"), sanity_checking=False, loggers=[]
    )


def started(**settings: Any) -> WandbArtifacts:
    callback = WandbArtifacts(**settings)
    callback._run = SimpleNamespace(id="r1", offline=True)  # type: ignore[assignment]
    return callback


@pytest.mark.parametrize(
    ("clocks", "expected"),
    [
        ({"best": 80, "last": 160}, [("best", ["best"], 80), ("last", ["last"], 160)]),
        ({"best": 160, "last": 160}, [("best", ["best", "last"], 160)]),
        ({"last": 160}, [("last", ["last"], 160)]),
    ],
)
def test_each_checkpoint_is_uploaded_once(
    clocks: dict[str, int], expected: Logged, logged: Logged, tmp_path: Path
) -> None:
    trainer, callback = write(tmp_path, **clocks), started()
    for _ in range(2):
        callback.on_fit_end(trainer, None)  # type: ignore[arg-type]

    assert logged == expected


def test_new_best_is_uploaded_at_a_limited_rate(logged: Logged, tmp_path: Path) -> None:
    for minutes, expected in ((0.0, [80, 120]), (60.0, []), (None, [])):
        logged.clear()
        callback = started(best_every_minutes=minutes)
        callback._last_attempt_at = artifacts.time.monotonic()
        for clock in (80, 80, 120):
            callback.on_validation_start(write(tmp_path, best=clock, last=clock), None)  # type: ignore[arg-type]
            assert callback._jobs_in_background.wait(60)
        assert [clock for _, aliases, clock in logged] == expected
        assert all(aliases == ["best"] for _, aliases, _ in logged)


def test_unresponsive_server_does_not_block_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer = threading.Event()
    monkeypatch.setattr(artifacts, "log_model", lambda *_: answer.wait())
    monkeypatch.setattr(artifacts, "_MAX_WAIT_S", 0.05)
    callback = started()
    callback.on_fit_end(write(tmp_path, best=80, last=80), None)  # type: ignore[arg-type]

    assert "W&B has not accepted the checkpoints yet" in caplog.text
    answer.set()
    assert callback._jobs_in_background.wait(60)  # else it may still run during the next test


def test_upload_error_is_reported_and_later_uploads_are_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def log_model(run: Any, name: str, path: Path, *_: Any) -> None:
        tried.append(path.stem)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(artifacts, "log_model", log_model)
    callback = started()
    for clock in (80, 120):
        callback.on_fit_end(write(tmp_path, best=clock, last=clock), None)  # type: ignore[arg-type]

    assert tried == ["best", "best"]
    assert "training is not affected: no route to host" in caplog.text


def test_only_the_main_process_of_a_real_run_uploads() -> None:
    for is_global_zero, fast_dev_run in ((False, False), (True, True)):
        callback = WandbArtifacts()
        trainer = SimpleNamespace(is_global_zero=is_global_zero, fast_dev_run=fast_dev_run)
        callback.on_train_start(trainer, None)  # type: ignore[arg-type]
        assert callback._run is None


def test_invalid_setting_raises() -> None:
    with pytest.raises(UserError, match="best_every_minutes -1 must be 0 or more"):
        WandbArtifacts(best_every_minutes=-1)


def test_data_artifact_is_marked_as_used_by_the_run() -> None:
    used: list[tuple[Any, list[str]]] = []
    run = SimpleNamespace(
        offline=False, use_artifact=lambda artifact, aliases: used.append((artifact, aliases))
    )
    version = {"name": "my photos", "digest": "0123456789abcdef", "train_images": 9}
    for _ in range(2):
        artifacts.declare_data(run, version)  # type: ignore[arg-type]

    (first, aliases), (second, _) = used
    assert (first.type, first.name, aliases) == ("dataset", "data-my-photos", ["0123456789abcdef"])
    assert first.digest == second.digest  # W&B makes no new version of the same data
    assert first.metadata == version
