"""Captions of the training set that differ from a given one in one word."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

Words = tuple[str, ...]
_TOKEN = re.compile(r"[^\s,]+|,")
_ANY = "*"


class SimilarCaptions:
    """Finds captions with one word more, one word less, or another word in one place.

    "bell" and "bell off" are similar, and so are "arrow left" and "arrow right", or "bell, outline" and
    "bell, filled". Commas count as words, so that "bell" and "bell, outline", which may describe the same
    image, are not. A subject, which is what stands before the first comma, keeps one of its words: "bell,
    outline" and "home, outline" are not similar. A number is replaced, but neither added nor left out, since
    "star 2" is often another drawing of "star". Even so, a few similar captions describe the same image: of
    the icons that are installed with this package about one in a hundred.

    Args:
        captions: of the training set.
    """

    def __init__(self, captions: Iterable[str]) -> None:
        self._captions: dict[Words, str] = {}
        self._longer: defaultdict[Words, list[str]] = defaultdict(list)
        self._replaced: defaultdict[Words, list[str]] = defaultdict(list)
        for caption in sorted({caption for caption in captions if caption}):
            words = _words(caption)
            if words in self._captions:
                continue
            self._captions[words] = caption
            for place in range(len(words)):
                if words[place] == ",":
                    continue
                if not words[place].isdigit():
                    self._longer[_without(words, place)].append(caption)
                if _is_kept(words, place):
                    self._replaced[_with_any(words, place)].append(caption)

    @property
    def none_found(self) -> bool:
        """Whether no caption of the training set differs from another one in one word."""
        return all(self.draw(caption, 0.0, 0.0) is None for caption in self._captions.values())

    def draw(self, caption: str, first: float, second: float) -> str | None:
        """A similar caption, chosen by two numbers from [0, 1); None if there is none.

        The first number chooses between captions that are longer or shorter by a word and those with
        another word in one place, if there are both; the second number chooses the caption.
        """
        words = _words(caption)
        places = [place for place in range(len(words)) if words[place] != ","]
        resized = [*self._longer.get(words, ())] if words else []
        shorter = [_without(words, place) for place in places if not words[place].isdigit()]
        resized += [self._captions[each] for each in shorter if each in self._captions]
        own = self._captions.get(words)
        least = 0 if own is None else 1  # the group of a caption of the training set contains itself
        groups = [
            self._replaced.get(_with_any(words, place), []) for place in places if _is_kept(words, place)
        ]
        groups = [group for group in groups if len(group) > least]
        if groups and (not resized or first < 0.5):
            scaled = second * len(groups)
            group = groups[int(scaled)]
            chosen = int((scaled - int(scaled)) * (len(group) - least))
            return group[chosen + (own is not None and chosen >= group.index(own))]
        return resized[int(second * len(resized))] if resized else None


def _words(caption: str) -> Words:
    return tuple(_TOKEN.findall(caption.lower()))


def _without(words: Words, place: int) -> Words:
    return words[:place] + words[place + 1 :]


def _with_any(words: Words, place: int) -> Words:
    return (*words[:place], _ANY, *words[place + 1 :])


def _is_kept(words: Words, place: int) -> bool:
    """Whether the subject keeps one of its words if the word at the place is replaced."""
    end = words.index(",") if "," in words else len(words)
    return place >= end or end > 1
