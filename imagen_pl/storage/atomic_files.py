"""Atomic writes, and the folder for cached files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from imagen_pl.errors import UserError

_DISK_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_dir() -> Path:
    """The cache folder for encoded text and statistics of real images.

    $IMAGEN_PL_CACHE, else $XDG_CACHE_HOME/imagen_pl, else ~/.cache/imagen_pl. Everything in it can be deleted
    at any time and is then computed again.
    """
    folder = os.environ.get("IMAGEN_PL_CACHE")
    if folder:
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imagen_pl"


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Write to a temporary file that replaces `path` once it is complete and on the disk.

    Raises:
        UserError: the disk is full; an existing file at `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if _disk_is_full(error):
            state = "the previous file is unchanged" if path.exists() else "nothing was written"
            raise UserError(
                f"cannot write {path}: no space left on the disk ({state}); free some space and try again"
            ) from error
        raise


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is a full disk: torch's writer wraps the system's error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL_ERRORS:
            return True
        error = error.__cause__ or error.__context__
    return False
