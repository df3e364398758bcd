"""Reads remote files (http, https, s3, gs, ...) through fsspec, and resumes after a broken connection."""

from __future__ import annotations

import io
import logging
import time
from typing import IO, Any

from imagen_pl.errors import UserError

log = logging.getLogger(__name__)

_READ = 1 << 20  # bytes per read while skipping to an offset
_TIMEOUT_S = 60.0  # without data for so long, a connection counts as broken
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


def check_protocol(address: str) -> None:
    """Raise UserError if no installed package supports the protocol of an address."""
    import fsspec

    protocol = fsspec.core.split_protocol(address)[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError:
        package = _PACKAGES.get(protocol, protocol)
        raise UserError(f"{address} needs the package {package}: pip install {package}") from None
    except ValueError:
        raise UserError(
            f"{address}: the protocol {protocol}:// is not supported; use http(s), s3 or gs"
        ) from None


def matching_addresses(pattern: str) -> list[str]:
    """The addresses that a pattern with * or ? matches, sorted."""
    import fsspec

    check_protocol(pattern)
    files, path = fsspec.core.url_to_fs(pattern)
    try:
        return sorted(str(files.unstrip_protocol(found)) for found in files.glob(path))
    except Exception as error:  # each file system raises its own errors
        raise UserError(f"{pattern} cannot be listed: {type(error).__name__}: {error}") from error


class RemoteFile(io.RawIOBase):
    """A file that is read sequentially, and reopened at the same offset if the connection breaks.

    FileNotFoundError and PermissionError are not retried.

    Args:
        address: for example s3://bucket/shards/train-000000.tar.
        retries: consecutive retries without progress; the wait doubles each time.
        wait_s: wait before the first retry.
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
        """Read at most `size` bytes; none at the end of the file. Raises OSError after the last retry."""
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
            except Exception as error:  # each file system raises its own errors
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
            except Exception as error:  # the connection is broken already
                log.info("%s: %s", self.address, error)

    def _open_at(self, offset: int) -> IO[bytes]:
        import fsspec

        settings: dict[str, Any] = {}
        if self.address.startswith(("http://", "https://")):
            from aiohttp import ClientTimeout

            # Reading is as slow as training, so there is no total timeout. block_size 0 streams the file,
            # since not every server supports range requests.
            timeout = ClientTimeout(total=None, sock_connect=_TIMEOUT_S, sock_read=_TIMEOUT_S)
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
