"""WebDataset shards: tar files in which an image and its caption share a name."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import (
    CAPTION_COLUMNS,
    IMAGE_SUFFIXES,
    SPLITS,
    Row,
    StreamSource,
    as_captions,
    existing,
)
from imagen_pl.errors import UserError
from imagen_pl.storage.remote_files import RemoteFile, check_protocol, matching_addresses

_BUFFER = 1 << 20  # bytes per read of a remote file

log = logging.getLogger(__name__)


class WebDatasetSource(StreamSource):
    """Images streamed from WebDataset shards, on disk or over a network.

    Missing shards and the rest of damaged ones are skipped and counted. Broken connections are reopened.

    In a shard, 000123.jpg has its captions in 000123.txt, one a line, or in 000123.json under caption,
    captions, text, prompt, description or sentences. Use many shards: each worker of each process reads
    its own shards.

    In a folder, the first word of a shard's name is its split, as in train-000000.tar and
    validation-000000.tar, which `imagen-pl data shards` writes; if none begins with train, all are
    for training.

    Args:
        path: a folder of .tar files, or files such as "shards/{00000..00099}.tar"; or addresses such as
            "https://example.org/{00000..00099}.tar" or "s3://bucket/shards/*.tar", which fsspec opens; or a
            "pipe:" command for `webdataset`.
        val_path: shards to validate on, in the same forms; None takes the folder's own, or holds out
            the last data.val_fraction of the shards.
        caption_key: suffix of the caption's file, such as txt; None takes .txt, .caption, then .json.
        retries: retries after a failed connection, 1, 2, 4, ... seconds apart.
    """

    def __init__(
        self, path: str, val_path: str | None = None, caption_key: str | None = None, retries: int = 5
    ) -> None:
        self.path = path
        self.val_path = val_path
        self.caption_key = caption_key
        self.retries = retries

    def shards(self) -> dict[str, list[str]]:
        shards = _expand(self.path)
        found = _by_split(shards) if _is_folder(self.path) else {"train": shards}
        if self.val_path is not None:
            found["validation"] = _expand(self.val_path)
        return found

    def read(self, shard: str, problems: SkippedImages) -> Iterator[tuple[Row, bytes]]:
        from webdataset.tariterators import group_by_keys, tar_file_expander

        def broken(error: Exception) -> bool:
            problems.add("shards damaged", shard)
            log.info("%s: %s: %s", shard, type(error).__name__, error)
            return True

        try:
            stream = self._open(shard)
        except FileNotFoundError:
            problems.add("shards missing", shard)
            return
        except PermissionError:
            problems.add("shards forbidden", shard)
            return
        except (OSError, ValueError, EOFError) as error:  # of a "pipe:" command or a remote file system
            broken(error)
            return
        with stream:
            files = tar_file_expander([{"url": shard, "stream": stream}], handler=broken)
            yield from self._samples(shard, group_by_keys(files, handler=broken), problems)

    def _open(self, shard: str) -> IO[bytes]:
        if "://" not in shard:
            from webdataset.gopen import gopen

            return gopen(shard)
        remote = io.BufferedReader(RemoteFile(shard, self.retries), _BUFFER)
        remote.peek(1)  # opens the file, so that a missing shard raises here
        return remote

    def _samples(
        self, shard: str, samples: Iterable[dict[str, Any]], problems: SkippedImages
    ) -> Iterator[tuple[Row, bytes]]:
        for sample in samples:
            name = f"{Path(shard).name}/{sample['__key__']}"
            image = next((v for k, v in sample.items() if f".{k.rsplit('.', 1)[-1]}" in IMAGE_SUFFIXES), None)
            if image is None:
                problems.add("without an image", name)
            else:
                yield Row(name, self._captions(sample), None), image

    def _captions(self, sample: dict[str, bytes]) -> tuple[str, ...]:
        for key in (self.caption_key,) if self.caption_key else ("txt", "caption", "json"):
            if key not in sample:
                continue
            text = sample[key].decode("utf-8", errors="replace")
            if not key.endswith("json"):
                return as_captions(text.split("\n"))
            try:
                fields = json.loads(text)
            except json.JSONDecodeError:
                return ()
            if isinstance(fields, dict):
                return as_captions(next((fields[c] for c in CAPTION_COLUMNS if c in fields), None))
        return ()


def _by_split(shards: list[str]) -> dict[str, list[str]]:
    words = [re.split("[-_.]", Path(shard).name.lower())[0] for shard in shards]
    splits = [SPLITS.get(word, word) for word in words]
    if "train" not in splits:
        return {"train": shards}
    found: dict[str, list[str]] = {}
    for split, shard in zip(splits, shards, strict=True):
        found.setdefault(split, []).append(shard)
    return found


def _is_address(path: str) -> bool:
    return path.startswith("pipe:") or "://" in path


def _is_folder(path: str) -> bool:
    return not _is_address(path) and "{" not in path and existing(path).is_dir()


def _expand(path: str) -> list[str]:
    try:
        from webdataset.shardlists import expand_urls
    except ModuleNotFoundError:
        raise UserError("WebDataset shards need a package: pip install webdataset") from None

    if path.startswith("pipe:"):
        return list(expand_urls(path))
    if _is_address(path):
        check_protocol(path)
        found = [
            address
            for pattern in expand_urls(path)
            for address in (matching_addresses(pattern) if "*" in pattern else [pattern])
        ]
        if not found:
            raise UserError(f"{path} matches no shards: check the address")
        return found
    if _is_folder(path):
        shards = [str(file) for file in sorted(existing(path).rglob("*.tar"))]
        if not shards:
            raise UserError(f"{path} holds no .tar files: check the path")
        return shards
    shards = list(expand_urls(str(Path(path).expanduser())))
    for shard in shards:
        existing(shard)
    return shards
