"""Two processes cannot train the same run at the same time, and a crash leaves no lock."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imagen_pl.errors import UserError
from imagen_pl.storage import run_lock
from imagen_pl.storage.run_lock import RunLock

# It also starts a child that outlives it, as a worker of the data loader may.
HOLDER = """
import os, sys, time
from pathlib import Path
from imagen_pl.storage.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.take()
if os.fork() == 0:
    time.sleep(30)
    os._exit(0)
print("taken", flush=True)
time.sleep(30)
"""


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock, with a child."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with another_process(tmp_path) as holder:
        with pytest.raises(
            UserError, match=rf"trained by another process \(process {holder.pid} on .*--name"
        ):
            RunLock(tmp_path).take()
        holder.kill()
        holder.wait()
        lock = RunLock(tmp_path)
        lock.take()  # although its child still runs
        assert lock.held


def test_a_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.take()
    lock.take()
    lock.release()
    with another_process(tmp_path), pytest.raises(UserError, match="trained by another process"):
        lock.take()


def test_missing_folders_and_file_systems_without_locks_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = [RunLock(tmp_path / "none"), RunLock(tmp_path)]
    locks[0].take()

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "lockf", no_locks)
    locks[1].take()
    assert not any(lock.held for lock in locks)
