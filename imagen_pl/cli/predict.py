"""`imagen-pl predict`: draw for the captions of a run's held-out images, or for a file of prompts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(words: Sequence[str]) -> int:
    """Parse the verb's own options here, and pass all others to the parser that `fit` uses."""
    parser = argparse.ArgumentParser(prog="imagen-pl predict", add_help=False, allow_abbrev=False)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    own, others = parser.parse_known_args(words)

    from imagen_pl.cli import fit
    from imagen_pl.cli.predictions import Predicting

    return fit.run(others, "predict", Predicting(own.prompts, own.out, own.seed))
