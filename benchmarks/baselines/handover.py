"""How other programs hand their pictures to benchmarks/quality.py, with what training cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from benchmarks.protocol import choose, read_pictures
from benchmarks.quality import PICTURES


def asked_captions(seed: int = 0) -> list[str]:
    """The protocol's 1,000 captions, in its order."""
    pictures, _ = read_pictures()
    return [pictures[row].caption for row in choose(pictures, seed)]


def write_pictures(folder: Path, pictures: UInt8[np.ndarray, "n h w 3"], about: Mapping[str, object]) -> None:
    """One picture for each of `asked_captions`."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / PICTURES, pictures)
    (folder / "about.json").write_text(json.dumps(dict(about), indent=1) + "\n")
