"""Commands that are meant to fail."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from imagen_pl.cli.main import main


def one_line_error(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run `imagen-pl` with words that it must refuse: the line on stderr, which is all that stands there."""
    capsys.readouterr()  # what came before
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error
