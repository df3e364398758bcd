import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from imagen_pl.errors import UserError
from imagen_pl.storage.checkpoint_io import check_same_tensors, read_checkpoint
from imagen_pl.training.atomic_checkpoints import AtomicCheckpointIO


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A real limit of the system: writing beyond it fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def checkpoint(value: float, size: int = 1000) -> dict[str, object]:
    return {"state_dict": {"w": torch.full((size,), value)}, "images_seen": 5}


def test_full_disk_keeps_the_earlier_checkpoint(tmp_path: Path) -> None:
    path, files = tmp_path / "last.ckpt", AtomicCheckpointIO()
    files.save_checkpoint(checkpoint(1.0), path)
    with largest_file(20_000), pytest.raises(UserError) as output:
        files.save_checkpoint(checkpoint(2.0, size=100_000), path)
    assert "no space left on the disk (the previous file is unchanged)" in str(output.value)
    assert str(path) in str(output.value)
    assert "\n" not in str(output.value)
    assert read_checkpoint(path)["state_dict"]["w"][0] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    files.save_checkpoint(checkpoint(3.0), path)
    assert read_checkpoint(path)["state_dict"]["w"][0] == 3.0


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path) -> None:
    class Unpicklable:
        def __reduce__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"a": Unpicklable()}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


def damaged(path: Path, how: str) -> None:
    torch.save(checkpoint(1.0), path)
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not a checkpoint")
    elif how == "zeros":
        path.write_bytes(bytes(len(data)))


@pytest.mark.parametrize("how", ["cut", "empty", "text", "zeros"])
@pytest.mark.parametrize("mmap", [True, False])
def test_damaged_files_give_one_line_error(tmp_path: Path, how: str, mmap: bool) -> None:
    path = tmp_path / "last.ckpt"
    damaged(path, how)
    with pytest.raises(UserError, match="cannot be read: it is damaged") as output:
        read_checkpoint(path, mmap=mmap)
    assert str(path) in str(output.value)
    assert "\n" not in str(output.value)


def test_missing_or_foreign_checkpoint_gives_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        read_checkpoint(tmp_path / "none.ckpt")
    torch.save({"model": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="was not written by imagen-pl"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_checkpoint_with_code_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(tmp_path / "ran").write_text, ("yes",))

    torch.save({**checkpoint(1.0), "bad": Payload()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def test_another_architecture_names_the_first_tensors_that_differ() -> None:
    here = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(5), "d": torch.zeros(1)}
    there = {"a": torch.zeros(2, 3), "b": torch.zeros(8), "d": torch.zeros(1), "e": torch.zeros(6)}
    with pytest.raises(UserError) as output:
        check_same_tensors(here, there, "x.ckpt", "Mend it.")
    assert str(output.value) == (
        "x.ckpt contains another architecture: b is (8,) in the file and (4,) here; c (5,) is missing in the "
        "file; 1 more differ. Mend it."
    )
    check_same_tensors(here, dict(here), "x.ckpt", "")
