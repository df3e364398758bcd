"""Captions are encoded once and kept on the disk: training on a fixed set runs no text encoder.

Axes: b batch, t tokens, c channels.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from imagen_pl.data.progress import with_progress
from imagen_pl.errors import UserError
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.storage.atomic_files import cache_dir
from imagen_pl.types import TextFeatures

_BATCH = 128


class TextCache:
    """Features of captions from a SQLite file, one for each encoder; safe for many readers and writers.

    Vectors are kept in half precision; they have a mean square of one, so that loses nothing that a
    network could use. It can be sent to the loader's workers, each of which opens the file for itself.

    Args:
        path: the file.
        dim: c, the size of the encoder's vectors.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self.path, self.dim = path, dim
        self._opened: tuple[int, sqlite3.Connection] | None = None

    @classmethod
    def build(
        cls,
        encoder: TextEncoder,
        captions: Iterable[str],
        device: torch.device | str = "cpu",
        folder: Path | None = None,
    ) -> TextCache:
        """Encode what the cache lacks, with a progress bar if that takes longer than two seconds.

        It can be broken off at any time: what was encoded is kept.

        Raises:
            UserError: the file cannot be written.
        """
        folder = cache_dir() / "text" if folder is None else folder
        cache = cls(folder / f"{encoder.fingerprint}.sqlite", encoder.dim)
        try:
            cache._encode_missing(encoder, captions, device)
        except (sqlite3.OperationalError, OSError) as error:
            raise UserError(
                f"the cache of encoded captions {cache.path} cannot be written ({error}): free "
                "some space, or name another folder with the environment variable IMAGEN_PL_CACHE"
            ) from error
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"the cache of encoded captions {cache.path} is damaged ({error}): delete it"
            ) from error
        return cache

    def __call__(self, captions: Sequence[str]) -> TextFeatures:
        """Features of captions, float32, on the CPU, padded to the longest.

        Raises:
            KeyError: a caption was not given to `build`.
            UserError: the file has been damaged or taken away since.
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

    def _encode_missing(
        self, encoder: TextEncoder, captions: Iterable[str], device: torch.device | str
    ) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS features (caption BLOB PRIMARY KEY, tokens BLOB, pooled BLOB)"
            )
            known = {key for (key,) in connection.execute("SELECT caption FROM features")}
            missing = [c for c in dict.fromkeys(captions) if _key(c) not in known]
            missing.sort(key=len)  # alike lengths together: little padding is encoded
            parts = [missing[start : start + _BATCH] for start in range(0, len(missing), _BATCH)]
            for part in with_progress(parts, "encoding captions", len(missing), " captions", len):
                with connection:
                    connection.executemany(
                        "INSERT OR IGNORE INTO features VALUES (?, ?, ?)", _rows(encoder, part, device)
                    )

    def _find(self, caption: str) -> tuple[bytes, bytes] | None:
        question = "SELECT tokens, pooled FROM features WHERE caption = ?"
        try:
            found: tuple[bytes, bytes] | None = (
                self._connection().execute(question, (_key(caption),)).fetchone()
            )
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"the cache of encoded captions {self.path} cannot be read any more ({error}): delete it, "
                "and start again"
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


def _rows(
    encoder: TextEncoder, captions: list[str], device: torch.device | str
) -> Iterator[tuple[bytes, bytes, bytes]]:
    features = encoder.encode(captions, device).to("cpu", torch.float16)
    for caption, tokens, mask, pooled in zip(
        captions, features.tokens, features.mask, features.pooled, strict=True
    ):
        yield _key(caption), tokens[mask].numpy().tobytes(), pooled.numpy().tobytes()
