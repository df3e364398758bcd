"""Files are complete or absent, also when the disk is full."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from imagen_pl.errors import UserError
from imagen_pl.storage.atomic_files import atomic_write, cache_dir


def _fail_within(path: Path, error: BaseException) -> None:
    with atomic_write(path) as file:
        file.write(b"new")
        raise error


def test_file_gets_its_name_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "weights.bin"

    with atomic_write(path) as file:
        file.write(b"half ")
        assert not path.exists()
        file.write(b"whole")

    assert path.read_bytes() == b"half whole"
    assert [p.name for p in path.parent.iterdir()] == ["weights.bin"]


def test_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")

    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), KeyboardInterrupt(), PermissionError(errno.EACCES, "no")]
)
def test_error_propagates_and_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")

    with pytest.raises(type(error)) as raised:
        _fail_within(path, error)

    assert raised.value is error
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["weights.bin"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize(
    ("old", "kept"), [(b"old", "the previous file is unchanged"), (None, "nothing was written")]
)
def test_full_disk_gives_one_line_error(tmp_path: Path, code: int, old: bytes | None, kept: str) -> None:
    path = tmp_path / "weights.bin"
    if old is not None:
        path.write_bytes(old)

    with pytest.raises(UserError) as raised:
        _fail_within(path, OSError(code, "full"))

    assert (
        str(raised.value)
        == f"cannot write {path}: no space left on the disk ({kept}); free some space and try again"
    )
    assert (path.read_bytes() if path.exists() else None) == old
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["weights.bin"])


def test_full_disk_is_recognised_behind_another_error(tmp_path: Path) -> None:
    """Torch's writer raises its own error from the system's."""

    def write() -> None:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError as error:
            raise RuntimeError("PytorchStreamWriter failed") from error

    with pytest.raises(UserError, match="no space left on the disk"), atomic_write(tmp_path / "a.bin"):
        write()


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IMAGEN_PL_CACHE", "~/here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "here"

    monkeypatch.setenv("IMAGEN_PL_CACHE", "")
    assert cache_dir() == tmp_path / "xdg" / "imagen_pl"

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("IMAGEN_PL_CACHE")
    assert cache_dir() == tmp_path / ".cache" / "imagen_pl"
