"""Progress of the verbs that draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from imagen_pl.cli.drawing import with_refinement_progress
from imagen_pl.data import progress


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The progress bars that were created."""
    made: list[Any] = []
    progress_bar = progress.progress_bar

    def recorded(*args: Any, **settings: Any) -> Any:
        made.append(progress_bar(*args, **settings))
        return made[-1]

    monkeypatch.setattr(progress, "progress_bar", recorded)
    return made


def two_batches(
    steps: int, on_step: Callable[[int], object] | None, seen: Callable[[], None] = lambda: None
) -> Iterator[Image.Image]:
    """Five pictures in batches of 3 and 2, as `TextToImage.draw` gives them."""
    for size in (3, 2):
        for _ in range(steps):
            assert on_step is not None
            on_step(size)
            seen()
        yield from [Image.new("RGB", (4, 4))] * size


def test_refined_pictures_are_counted_by_their_steps(bars: list[Any]) -> None:
    """The pictures of a batch are finished together; counted by them, the bar would stay at 0."""
    counts: list[int] = []

    drawn = with_refinement_progress(
        lambda on_step: two_batches(4, on_step, lambda: counts.append(bars[0].n)), 5, 4, " pictures"
    )

    assert len(list(drawn)) == 5
    assert counts == [3, 6, 9, 12, 14, 16, 18, 20]
    assert (bars[0].total, bars[0].n, bars[0].unit) == (20, 20, " steps")
    assert bars[0].desc == "refining 5 pictures"


def test_one_refined_picture_is_not_called_pictures(bars: list[Any]) -> None:
    drawn = with_refinement_progress(lambda _: iter([Image.new("RGB", (4, 4))]), 1, 20, " pictures")

    assert len(list(drawn)) == 1
    assert bars[0].desc == "refining 1 picture"


def test_pictures_without_refinement_are_counted_one_by_one(bars: list[Any]) -> None:
    drawn = with_refinement_progress(lambda on_step: two_batches(0, on_step), 5, 0, " pictures")

    assert len(list(drawn)) == 5
    assert (bars[0].total, bars[0].n, bars[0].unit) == (5, 5, " pictures")
