"""Counts in messages."""

from __future__ import annotations

import pytest

from imagen_pl.cli.counting import counted


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 prompts"), (1, "1 prompt"), (2, "2 prompts"), (1200, "1,200 prompts")]
)
def test_a_count_is_in_the_plural_unless_it_is_1(number: int, text: str) -> None:
    assert counted(number, "prompt") == text
