"""Trains in a process of its own, and reads what W&B wrote offline: a LevelDB log of protobuf records."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from struct import unpack_from
from typing import Any

_BLOCK = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, in order."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, parts = 7, []
    while at + 7 <= len(data):
        if _BLOCK - at % _BLOCK < 7:  # the rest of a block, too short for a header
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = unpack_from("<HB", data, at + 4)
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def fit(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: W&B keeps one session a process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-m", "imagen_pl.cli.main", "fit", *words],
        env=kept | {"WANDB_DATA_DIR": str(Path("wandb-data").resolve())} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
