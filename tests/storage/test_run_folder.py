import os
from pathlib import Path

import pytest

from imagen_pl.errors import UserError
from imagen_pl.storage.run_folder import RunFolder, is_main_process


def touch(path: Path, time: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    if time is not None:
        os.utime(path, (time, time))
    return path


def test_an_empty_or_failed_run_can_be_started_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a")
    run.check_free()
    touch(run.config)
    run.check_free()


@pytest.mark.parametrize("kept", ["checkpoints/last.ckpt", "samples/000001kimg.png", "metrics.csv"])
def test_run_with_files_is_not_overwritten(tmp_path: Path, kept: str) -> None:
    run = RunFolder(tmp_path / "a")
    touch(run.path / kept)
    with pytest.raises(UserError) as output:
        run.check_free()
    for way in ("--ckpt_path last", "--name", "--existing move"):
        assert way in str(output.value)


def test_move_away_keeps_everything_and_never_collides(tmp_path: Path) -> None:
    for text in ("first", "second", "third"):
        run = RunFolder(tmp_path / "a")
        touch(run.metrics, 1e9).write_text(text)
        os.utime(run.metrics, (1e9, 1e9))
        os.utime(run.path, (1e9, 1e9))
        moved = run.move_away()
        assert moved is not None
        assert (moved / "metrics.csv").read_text() == text
        assert not run.path.exists()
    assert len(list(tmp_path.iterdir())) == 3
    assert RunFolder(tmp_path / "a").move_away() is None


def test_last_is_the_newest_checkpoint_of_any_name(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a")
    with pytest.raises(UserError, match="contains no checkpoint to resume from"):
        run.checkpoint("last")
    touch(run.checkpoints / "last.ckpt", 100)
    touch(run.checkpoints / "best.ckpt", 50)
    assert run.checkpoint("last").name == "last.ckpt"
    assert run.checkpoint("best").name == "best.ckpt"
    touch(run.checkpoints / "stopped.ckpt", 200)
    assert run.checkpoint("last").name == "stopped.ckpt"
    for file in run.checkpoints.iterdir():
        os.utime(file, (300, 300))
    assert run.checkpoint("last").name == "last.ckpt"


def test_checkpoint_takes_a_path_or_a_run_and_names_what_is_missing(tmp_path: Path) -> None:
    run, other = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")
    file = touch(other.checkpoints / "last.ckpt")
    assert run.checkpoint(str(file)) == file
    assert run.checkpoint(str(other.path)) == file
    with pytest.raises(UserError, match=r"nowhere\.ckpt: there is no such file"):
        run.checkpoint("nowhere.ckpt")
    with pytest.raises(UserError, match="this run has not been validated yet"):
        run.checkpoint("best")


@pytest.mark.parametrize(
    ("variables", "main"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_only_the_main_process_writes(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], main: bool
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() is main


def test_the_resume_command_is_quoted() -> None:
    command = RunFolder("my runs/a").resume_command()
    assert command == "imagen-pl fit --config 'my runs/a/config.yaml' --ckpt_path last"
