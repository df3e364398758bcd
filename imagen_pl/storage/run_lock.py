"""A lock on a run's folder, so that two processes cannot train the same run at the same time."""

from __future__ import annotations

import errno
import json
import os
import platform
from pathlib import Path
from typing import IO

from imagen_pl.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HELD = {errno.EAGAIN, errno.EACCES}


class RunLock:
    """Locks `RUN/.lock` from `take` until `release` or the end of the process.

    It is a POSIX record lock: the kernel releases it when the process ends, also after a crash, and child
    processes such as data loader workers do not inherit it. If the file system does not support locks, `take`
    does nothing.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Whether this process has locked the folder."""
        return self._file is not None

    def take(self) -> None:
        """Lock the folder, which must exist. Raises UserError if another process has locked it."""
        if fcntl is None or self._file is not None:
            return
        path = self.folder / ".lock"
        try:
            file = path.open("a+")
        except OSError:
            return  # a folder that is not writable is reported when results are written
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(file)
            file.close()
            if error.errno in _HELD:
                raise UserError(
                    f"{self.folder} is being trained by another process{owner}: wait until it ends, stop it, "
                    "or add --name OTHER to use another folder"
                ) from None
            return  # no locks, as on some network file systems
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": platform.node()}))
        file.flush()
        self._file = file

    def release(self) -> None:
        """Unlock the folder; the file stays, since deleting it could remove the lock of another process."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _owner(file: IO[str]) -> str:
    try:
        file.seek(0)
        owner = json.loads(file.read())
        return f" (process {owner['pid']} on {owner['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
