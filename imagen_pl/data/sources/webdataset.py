"""WebDataset shards: tar files in which an image and its caption share a name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

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


class WebDatasetSource(StreamSource):
    """Images streamed from WebDataset shards, on disk or over a network.

    In a shard, 000123.jpg has its captions in 000123.txt, one a line, or in 000123.json under caption,
    captions, text, prompt, description or sentences. Use many shards: each worker of each process reads
    its own shards.

    In a folder, the first word of a shard's name is its split, as in train-000000.tar and
    validation-000000.tar, which `imagen-pl data shards` writes; if none begins with train, all are
    for training.

    Args:
        path: a folder of .tar files, or files such as "shards/{00000..00099}.tar"; or an http(s)
            address or "pipe:" command for `webdataset`.
        val_path: shards to validate on, in the same forms; None takes the folder's own, or holds out
            the last data.val_fraction of the shards.
        caption_key: suffix of the caption's file, such as txt; None takes .txt, .caption, then .json.
    """

    def __init__(self, path: str, val_path: str | None = None, caption_key: str | None = None) -> None:
        self.path = path
        self.val_path = val_path
        self.caption_key = caption_key

    def shards(self) -> dict[str, list[str]]:
        shards = _expand(self.path)
        found = _by_split(shards) if _is_folder(self.path) else {"train": shards}
        if self.val_path is not None:
            found["validation"] = _expand(self.val_path)
        return found

    def read(self, shard: str, problems: SkippedImages) -> Iterator[tuple[Row, bytes]]:
        from webdataset.tariterators import tarfile_samples

        def broken(error: Exception) -> bool:
            problems.add("broken off in the middle of a shard", shard)
            return True

        for sample in tarfile_samples([{"url": shard}], handler=broken):
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
        raise UserError("WebDataset shards are read with a package: pip install webdataset") from None

    if _is_address(path):
        return list(expand_urls(path))
    if _is_folder(path):
        shards = [str(file) for file in sorted(existing(path).rglob("*.tar"))]
        if not shards:
            raise UserError(f"{path} holds no .tar files: check the path")
        return shards
    shards = list(expand_urls(str(Path(path).expanduser())))
    for shard in shards:
        existing(shard)
    return shards
