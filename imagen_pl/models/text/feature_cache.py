"""Captions are encoded once and cached on disk: training on a fixed set then runs no text encoder.

Axes: b batch, t tokens, c channels.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch

from imagen_pl.data.progress import progress_bar
from imagen_pl.errors import UserError
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.storage.atomic_files import cache_dir
from imagen_pl.types import TextFeatures

# Tokens of a batch. On a CPU a batch whose activations fit its cache is fastest; a GPU needs larger ones.
_TOKENS_CPU, _TOKENS_GPU = 1024, 16384
# A batch of at least this many tokens ends where captions get longer, so that most batches have no padding.
_TOKENS_MIN = 256
# Seconds between two writes: an interrupted process keeps all captions, a killed one loses the last seconds'.
_WRITE_EVERY_S = 2.0

Encoded = tuple[bytes, bytes, bytes]  # a caption's key, its tokens and its pooled vector


class TextCache:
    """Features of captions from a SQLite file, one for each encoder; safe for many readers and writers.

    Vectors are stored in half precision: they have a mean square of one, so the rounding is negligible. The
    cache can be pickled for the loader's workers, each of which opens the file itself.

    Args:
        path: the file.
        dim: c, size of the encoder's vectors.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self.path, self.dim = path, dim
        self._opened: tuple[int, sqlite3.Connection] | None = None

    @classmethod
    def of_encoder(cls, encoder: TextEncoder, folder: Path | None = None) -> TextCache:
        """The cache of an encoder, in `folder` or the package's cache folder; nothing is read or written."""
        folder = cache_dir() / "text" if folder is None else folder
        return cls(folder / f"{encoder.fingerprint}.sqlite", encoder.dim)

    @classmethod
    def build(
        cls,
        encoder: TextEncoder,
        captions: Iterable[str],
        device: torch.device | str = "cpu",
        folder: Path | None = None,
    ) -> TextCache:
        """Encode the captions that the cache lacks, with a progress bar if that takes over two seconds.

        It can be interrupted at any time: captions that are encoded are kept.

        Raises:
            UserError: the file cannot be written.
        """
        cache = cls.of_encoder(encoder, folder)
        missing = cache.missing(captions)
        with progress_bar("encoding captions", len(missing), " captions") as bar:
            cache.encode(encoder, missing, device, bar.update)
        return cache

    def missing(self, captions: Iterable[str]) -> list[str]:
        """The captions that are not in the cache, each once; the file is created if there is none.

        Raises:
            UserError: the file is damaged or cannot be written.
        """
        with self._errors_in_one_line():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS features (caption BLOB PRIMARY KEY, tokens BLOB, pooled BLOB)"
                )
                known = {key for (key,) in connection.execute("SELECT caption FROM features")}
        return [caption for caption in dict.fromkeys(captions) if _key(caption) not in known]

    def encode(
        self,
        encoder: TextEncoder,
        captions: Sequence[str],
        device: torch.device | str = "cpu",
        on_encoded: Callable[[int], object] = lambda count: None,
    ) -> None:
        """Encode captions and add them to the cache; interrupted, it keeps those that are encoded.

        Args:
            encoder: the encoder of this cache.
            captions: as `missing` returns them.
            device: device to encode on.
            on_encoded: called with the number of captions after each batch.

        Raises:
            UserError: the file is damaged or cannot be written.
        """
        on_cpu = torch.device(device).type == "cpu"
        lengths = encoder.lengths(captions)
        waiting: list[Encoded] = []
        written_at = time.monotonic()
        try:
            for batch in _batches(captions, lengths, _TOKENS_CPU if on_cpu else _TOKENS_GPU):
                waiting += _encoded(encoder, batch, device)
                on_encoded(len(batch))
                if time.monotonic() - written_at > _WRITE_EVERY_S:
                    self._write(waiting)
                    waiting, written_at = [], time.monotonic()
        finally:
            self._write(waiting)

    def __call__(self, captions: Sequence[str]) -> TextFeatures:
        """Features of captions, float32, on the CPU, padded to the longest.

        Raises:
            KeyError: a caption is not in the cache.
            UserError: the file was damaged or deleted in the meantime.
        """
        rows = []
        for caption in captions:
            found = self._find(caption)
            if found is None:
                raise KeyError(f"{caption!r} is not in {self.path}")
            words, whole = (np.frombuffer(part, np.float16).astype(np.float32) for part in found)
            rows.append((words.reshape(-1, self.dim), whole))
        longest = max(len(words) for words, _ in rows)
        tokens = torch.zeros(len(rows), longest, self.dim)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, (words, _) in enumerate(rows):
            tokens[i, : len(words)] = torch.from_numpy(words)
            mask[i, : len(words)] = True
        pooled = torch.from_numpy(np.stack([whole for _, whole in rows]))
        return TextFeatures(tokens, mask, pooled)

    def _write(self, rows: list[Encoded]) -> None:
        """Add rows in one short transaction, so that other processes can write in between."""
        if not rows:
            return
        with self._errors_in_one_line(), closing(self._connect()) as connection, connection:
            connection.executemany("INSERT OR IGNORE INTO features VALUES (?, ?, ?)", rows)

    @contextmanager
    def _errors_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            raise UserError(
                f"the cache of encoded captions {self.path} cannot be written ({error}): free some space, or "
                "name another folder with the environment variable IMAGEN_PL_CACHE"
            ) from error
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"the cache of encoded captions {self.path} is damaged ({error}): delete it"
            ) from error

    def _find(self, caption: str) -> tuple[bytes, bytes] | None:
        question = "SELECT tokens, pooled FROM features WHERE caption = ?"
        try:
            found: tuple[bytes, bytes] | None = (
                self._connection().execute(question, (_key(caption),)).fetchone()
            )
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"the cache of encoded captions {self.path} cannot be read any more ({error}): delete it and "
                "start again"
            ) from error
        return found

    def _connection(self) -> sqlite3.Connection:
        """This process's own: a connection must not be carried over a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self._connect())
        return self._opened[1]

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=600, check_same_thread=False)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}


def _key(caption: str) -> bytes:
    return hashlib.sha256(caption.encode(errors="replace")).digest()[:16]


def _batches(captions: Sequence[str], lengths: Sequence[int], most_tokens: int) -> Iterator[list[str]]:
    """Batches of captions of similar length and at most so many tokens with padding, shortest first."""
    batch: list[str] = []
    longest = 0  # tokens; lengths are sorted, so it is that of the newest caption
    for length, caption in sorted(zip(lengths, captions, strict=True)):
        full = (len(batch) + 1) * length > most_tokens
        if batch and (full or (length > longest and len(batch) * longest >= _TOKENS_MIN)):
            yield batch
            batch = []
        batch.append(caption)
        longest = length
    if batch:
        yield batch


def _encoded(encoder: TextEncoder, captions: list[str], device: torch.device | str) -> Iterator[Encoded]:
    features = encoder.encode(captions, device).to("cpu", torch.float16)
    for caption, tokens, mask, pooled in zip(
        captions, features.tokens, features.mask, features.pooled, strict=True
    ):
        yield _key(caption), tokens[mask].numpy().tobytes(), pooled.numpy().tobytes()
