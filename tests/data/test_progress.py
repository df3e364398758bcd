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


def test_a_bar_continues_where_an_earlier_run_stopped() -> None:
    with progress.progress_bar(total=100, initial=40) as bar:
        bar.update(8)
    assert (bar.n, bar.total) == (48, 100)


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_that_is_not_shown_writes_nothing(
    shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_SHOW_AFTER_S", 0.0)
    progress.progress_bar("encoding", total=100, shown=shown).close()
    assert ("encoding" in capsys.readouterr().err) is shown
