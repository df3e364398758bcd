"""`imagen-pl test`: score a checkpoint of a run on the test split of its data."""

from __future__ import annotations

from collections.abc import Sequence

from imagen_pl.cli import fit


def run(words: Sequence[str]) -> int:
    """Run the verb on the words after it."""
    return fit.run(words, "test")
