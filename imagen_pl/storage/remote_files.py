"""Reads files by address (http, https, s3, gs, ...) through fsspec, and goes on after a broken connection."""

from __future__ import annotations

import io
import logging
import time
from typing import IO, Any

from imagen_pl.errors import UserError

log = logging.getLogger(__name__)

_READ = 1 << 20  # bytes that are read and thrown away at once
_SILENCE_S = 60.0  # without an answer for so long, a connection counts as broken
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


def check_protocol(address: str) -> None:
    """Raise UserError if no installed package opens addresses of this kind."""
    import fsspec

    protocol = fsspec.core.split_protocol(address)[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError:
        package = _PACKAGES.get(protocol, protocol)
        raise UserError(f"{address} needs the package {package}: pip install {package}") from None
    except ValueError:
        raise UserError(
            f"{address}: nothing here opens {protocol}:// addresses; use http(s), s3 or gs"
        ) from None


def matching_addresses(pattern: str) -> list[str]:
    """The addresses that a pattern with * or ? matches, sorted."""
    import fsspec

    check_protocol(pattern)
    files, path = fsspec.core.url_to_fs(pattern)
    try:
        return sorted(str(files.unstrip_protocol(found)) for found in files.glob(path))
    except Exception as error:  # every file system raises its own
        raise UserError(f"{pattern} cannot be listed: {type(error).__name__}: {error}") from error


class RemoteFile(io.RawIOBase):
    """A file that is read from its beginning to its end, and is opened again where a connection breaks.

    What is missing or forbidden is not tried again.

    Args:
        address: as s3://bucket/shards/train-000000.tar.
        retries: tries after a failure, with nothing read in between; the waits double each time.
        wait_s: before the first of them.
    """

    def __init__(self, address: str, retries: int = 5, wait_s: float = 1.0) -> None:
        self.address, self.retries, self.wait_s = address, retries, wait_s
        self._file: IO[bytes] | None = None
        self._at = 0  # bytes read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """At most so many bytes; fewer only at the end of the file. Raises OSError after the last try."""
        failures = 0
        while True:
            try:
                if self._file is None:
                    self._file = self._open_at(self._at)
                data = self._file.read(size)
                self._at += len(data)
                return data
            except (FileNotFoundError, PermissionError):
                raise
            except Exception as error:  # every file system raises its own
                self._close_file()
                failures += 1
                if failures > self.retries:
                    raise OSError(f"{self.address}: {type(error).__name__}: {error}") from error
                wait_s = self.wait_s * 2 ** (failures - 1)
                log.info("%s: %s; trying again in %.1f s", self.address, error, wait_s)
                time.sleep(wait_s)

    def close(self) -> None:
        self._close_file()
        super().close()

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except Exception as error:  # of a connection that is broken already
                log.info("%s: %s", self.address, error)

    def _open_at(self, offset: int) -> IO[bytes]:
        import fsspec

        settings: dict[str, Any] = {}
        if self.address.startswith(("http://", "https://")):
            from aiohttp import ClientTimeout

            # A shard is read as slowly as it is trained on, so only silence has a limit. It is read in one
            # piece, since not every server can give parts.
            timeout = ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
            settings = {"block_size": 0, "client_kwargs": {"timeout": timeout}}
        file: IO[bytes] = fsspec.open(self.address, "rb", **settings).open()
        if file.seekable() and not settings:
            file.seek(offset)
            return file
        while offset > 0:
            skipped = len(file.read(min(offset, _READ)))
            if skipped == 0:
                raise OSError("the file is shorter than it was")
            offset -= skipped
        return file
