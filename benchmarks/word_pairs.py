"""Pairs of icons of one set and kind whose names differ in one word, such as "bell" and "bell off".

A model that reads every word draws "bell off" nearer to the real "bell off" than to the real "bell". Pairs
are mined by rule from the icons' words:

- negation: one name has the further word off, slash, no, x, disabled or remove;
- number: the names differ in one number, in digits or as a word;
- direction: the names differ in one word of left, right, up, down, top, bottom, in, out, ...;
- attribute: one name has any other further word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagen_pl.data.sources.icons import IconRow

CATEGORIES = ("negation", "number", "direction", "attribute")
_NEGATIONS = {"off", "slash", "no", "x", "disabled", "remove", "not"}
_DIRECTIONS = {
    "left", "right", "up", "down", "top", "bottom", "in", "out", "north", "south", "east", "west",
    "horizontal", "vertical", "start", "end", "upward", "downward",
}  # fmt: skip
_NUMBERS = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"}


@dataclass(frozen=True)
class WordPair:
    """Two icons, by their places in the list of rows.

    held_out: at least one of them is not in the training split.
    """

    category: str
    first: int
    second: int
    held_out: bool


def mine(rows: Sequence[IconRow], most: int, seed: int) -> list[WordPair]:
    """Pairs of every category, drawn at random: at most `most` learnt and as many held-out ones of each."""
    groups: defaultdict[tuple[str, str], dict[tuple[str, ...], int]] = defaultdict(dict)
    for place, row in enumerate(rows):
        groups[row.set, row.kind].setdefault(tuple(row.words.split()), place)
    found: defaultdict[tuple[str, bool], list[WordPair]] = defaultdict(list)
    for group in groups.values():
        for words, place in group.items():
            for other, category in _neighbours(words, group):
                pair = (place, group[other])
                held_out = any(rows[each].split != "train" for each in pair)
                found[category, held_out].append(WordPair(category, *pair, held_out))
    draw = np.random.default_rng(seed)
    chosen = []
    for category in CATEGORIES:
        for held_out in (False, True):
            pairs = found[category, held_out]
            order = draw.permutation(len(pairs))[:most]
            chosen += [pairs[i] for i in sorted(order.tolist())]
    return chosen


def name_pairs(names: Sequence[str]) -> list[tuple[str, str, str]]:
    """All pairs of names that differ in one word, with the category."""
    group = {tuple(name.split()): i for i, name in enumerate(names)}
    return [
        (" ".join(words), " ".join(other), category)
        for words in group
        for other, category in _neighbours(words, group)
    ]


def _neighbours(
    words: tuple[str, ...], group: dict[tuple[str, ...], int]
) -> list[tuple[tuple[str, ...], str]]:
    """Names in the group that differ from this one in one word, each pair once, with the category."""
    found = []
    for i, word in enumerate(words):
        shorter = words[:i] + words[i + 1 :]
        if shorter in group:
            found.append((shorter, "negation" if word in _NEGATIONS else "attribute"))
        for kind, category in ((_DIRECTIONS, "direction"), (_NUMBERS, "number")):
            if word in kind:
                replaced = [(*words[:i], other, *words[i + 1 :]) for other in sorted(kind) if other > word]
                found += [(other, category) for other in replaced if other in group]
        if word.isdigit():
            start, end = words[:i], words[i + 1 :]
            found += [
                (other, "number")
                for other in group
                if len(other) == len(words)
                and other[:i] == start
                and other[i + 1 :] == end
                and other[i].isdigit()
                and int(other[i]) > int(word)
            ]
    return found
