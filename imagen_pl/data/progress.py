"""A progress bar for batches that are looked at before, or beside, training."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from imagen_pl.types import CaptionedBatch


def with_progress(batches: Iterable[CaptionedBatch], what: str) -> Iterator[CaptionedBatch]:
    """The same batches; their images are counted on stderr once it takes more than two seconds."""
    bar = tqdm(
        desc=f"looking at {what}",
        unit=" images",
        delay=2.0,
        mininterval=0.2 if sys.stderr.isatty() else 10,
        file=sys.stderr,
        leave=False,
    )
    with bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))
