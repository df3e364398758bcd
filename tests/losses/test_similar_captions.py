"""Captions that differ in one word."""

from __future__ import annotations

import pytest

from imagen_pl.losses.similar_captions import SimilarCaptions

CAPTIONS = [
    "bell",
    "bell off",
    "bell, outline",
    "bell, filled",
    "bell off, outline",
    "arrow left",
    "arrow right",
    "arrow up",
    "home",
    "home, outline",
    "star",
    "star 15",
    "dice 2",
    "dice 3",
    "",
]


def all_of(caption: str, captions: list[str] | None = None) -> set[str | None]:
    """Everything that is drawn for a caption."""
    similar = SimilarCaptions(CAPTIONS if captions is None else captions)
    draws = [(i + 0.5) / 40 for i in range(40)]
    return {similar.draw(caption, first, second) for first in (0.1, 0.9) for second in draws}


@pytest.mark.parametrize(
    ("caption", "similar"),
    [
        ("bell", {"bell off"}),  # not "bell, outline", which may describe the same image
        ("bell off", {"bell"}),
        ("bell, outline", {"bell, filled", "bell off, outline"}),
        ("arrow left", {"arrow right", "arrow up"}),
        ("arrow down", {"arrow left", "arrow right", "arrow up"}),  # not in the training set itself
        ("home", {None}),  # "bell" has no word in common with it
        ("home, outline", {None}),  # "bell, outline" is of another subject
        ("star", {None}),  # "star 15" is another drawing of it
        ("dice 2", {"dice 3"}),
        ("cat", {None}),
        ("", {None}),
    ],
)
def test_similar_captions_differ_in_one_word(caption: str, similar: set[str | None]) -> None:
    assert all_of(caption) == similar


def test_both_kinds_of_change_are_drawn_equally_often() -> None:
    similar = SimilarCaptions(["arrow left", "arrow", *(f"arrow v{i}" for i in range(50))])
    draws = [((i + 0.5) / 10, (j + 0.5) / 60) for i in range(10) for j in range(60)]
    found = [similar.draw("arrow left", *draw) for draw in draws]
    assert found.count("arrow") == 300
    assert {found.count(f"arrow v{i}") for i in range(50)} <= {5, 10}
    assert "arrow left" not in found


def test_the_order_of_captions_does_not_matter() -> None:
    one, other = SimilarCaptions(CAPTIONS), SimilarCaptions(reversed(CAPTIONS))
    for draw in (0.0, 0.3, 0.6, 0.99):
        assert one.draw("bell, outline", draw, draw) == other.draw("bell, outline", draw, draw)


def test_captions_without_similar_ones_are_noticed() -> None:
    assert SimilarCaptions(["bell", "home", "star 2", "star"]).none_found
    assert not SimilarCaptions(["bell", "bell off"]).none_found
