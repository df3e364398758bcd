"""The progress helper: items pass unchanged, and are counted."""

from __future__ import annotations

from typing import Any

import pytest

from imagen_pl.data import progress


def test_items_pass_unchanged_and_are_counted_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    def recorded(*args: Any, **settings: Any) -> Any:
        bars.append(bar(*args, **settings))
        return bars[-1]

    bar = progress.progress_bar
    monkeypatch.setattr(progress, "progress_bar", recorded)
    parts = [[1, 2], [3]]
    assert list(progress.with_progress(parts, "parts", size=len)) == parts
    assert list(progress.with_progress("abcd")) == list("abcd")
    assert [(each.n, each.total) for each in bars] == [(3, None), (4, 4)]
