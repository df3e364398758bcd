"""Subject, kind and split of an icon, from its name.

The subject is the icon's name without its set's variant words and size numbers, words joined by "-":
"tabler:shopping-cart-filled" is a "shopping-cart". Icons of many sets share a subject, so a caption has many
pictures.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "validation", "test", "composition"]

# From the most to the least held out. A picture under several names takes the first that one of them has.
HELD_OUT_FIRST: tuple[Split, ...] = ("test", "validation", "composition", "train")

# Words that sets add at the end of a name for another drawing of the same subject.
_FILLERS = {"alt", "one", "two", "three", "four"}

# The endings of plurals, in words of four letters or more, and what the singular has instead: "batteries",
# "boxes", "coins"; "gas" and "glass" are no plurals.
_PLURALS = (
    (re.compile(r"(?<=\w\w)ies$"), "y"),
    (re.compile(r"(?<=\w)(x|ch|sh|ss)es$"), r"\1"),
    (re.compile(r"(?<=\w\w[^s])s$"), ""),
)

# Variants that many sets use but do not declare. They count where the set has the name without them too.
_COMMON_VARIANTS = {
    "bold": "bold",
    "broken": "broken",
    "duotone": "duotone",
    "fill": "filled",
    "filled": "filled",
    "line": "outline",
    "linear": "outline",
    "outline": "outline",
    "outlined": "outline",
    "round": "rounded",
    "rounded": "rounded",
    "sharp": "sharp",
    "solid": "filled",
    "thin": "thin",
    "twotone": "two-tone",
}
_SIZE = re.compile(r"-(\d+)$")
_SIZE_IN_LABEL = re.compile(
    r"\b(\d+)(x\d+)?(px)?\b"
)  # of a variant: "24 filled", "solid 20x20", "outline-24px"
_SIZED_SETS = 0.9  # share of names with a number at the end from which the numbers are sizes
_TONES = re.compile(r"(-(light|medium-light|medium|medium-dark|dark)-skin-tone)+$")


@dataclass(frozen=True)
class IconName:
    """What a name says.

    Attributes:
        subject: words joined by "-".
        variant: "" for none.
        size: the size that it was drawn for, px; None if the name has none.
    """

    subject: str
    variant: str
    size: int | None = None

    @property
    def words(self) -> str:
        return self.subject.replace("-", " ")


class SetNames:
    """Reads the names of one icon set.

    Args:
        names: all names in the set.
        prefixes, suffixes: the set's own variant words with their labels, as Iconify lists them, for example
            {"": "Regular", "outline-rounded": "Outline Rounded"}.
        emoji: the subject of an emoji by its label, words joined by "-": an icon with an emoji's name takes
            the emoji's subject, so that both are in the same split.
    """

    def __init__(
        self,
        names: Iterable[str],
        prefixes: Mapping[str, str] | None = None,
        suffixes: Mapping[str, str] | None = None,
        emoji: Mapping[str, str] | None = None,
    ) -> None:
        self.names = {name.lower() for name in names}
        self.prefixes, self.suffixes = dict(prefixes or {}), dict(suffixes or {})
        self.emoji = emoji or {}
        bare = [self._without_declared(name)[0] for name in self.names]
        self.sized = sum(bool(_SIZE.search(name)) for name in bare) >= _SIZED_SETS * max(len(bare), 1)

    def read(self, name: str) -> IconName:
        name, label = self._without_declared(name.lower())
        variant = " ".join(_SIZE_IN_LABEL.sub("", label).split())
        size = _SIZE_IN_LABEL.search(label)
        if self.sized and size is None:
            size = _SIZE.search(name)
            name = _SIZE.sub("", name)
        if not (self.prefixes or self.suffixes):
            base, _, last = name.rpartition("-")
            if last in _COMMON_VARIANTS and base in self.names:
                name, variant = base, _COMMON_VARIANTS[last]
        return IconName(name, variant, None if size is None else int(size[1]))

    def split_of(self, subject: str, icon_set: str) -> Split:
        """The split of a subject, the same for all forms of its name: "sword", "swords" and "sword-2".

        Args:
            subject: the words, joined by "-".
            icon_set: the set's prefix, for example "tabler".
        """
        return split_of(self.split_key(subject), icon_set)

    def split_key(self, subject: str) -> str:
        """What the split is computed from: the emoji's hexcode whose label it is, or its simplest form."""
        plain = _TONES.sub("", subject)
        for form in (plain, without_numbers(plain), simplest_form(plain)):
            if form in self.emoji:
                return self.emoji[form]
        return simplest_form(subject)

    def _without_declared(self, name: str) -> tuple[str, str]:
        """The name without the longest variant that the set declares, and the variant's label."""
        for affixes, fits, cut in (
            (self.suffixes, lambda affix: name.endswith(f"-{affix}"), lambda n: name[: -n - 1]),
            (self.prefixes, lambda affix: name.startswith(f"{affix}-"), lambda n: name[n + 1 :]),
        ):
            found = max((affix for affix in affixes if affix and fits(affix)), key=len, default=None)
            if found is not None:
                return cut(len(found)), affixes[found].lower()
        return name, self.suffixes.get("", self.prefixes.get("", "")).lower()


def without_numbers(subject: str) -> str:
    """The subject without the numbers and "alt" that sets add to a name for another drawing of it.

    Args:
        subject: words joined by "-". One of numbers alone is returned as it is.
    """
    words = subject.split("-")
    kept = [word for word in words if not word.isdigit()]
    while len(kept) > 1 and kept[-1] in _FILLERS:
        kept.pop()
    return "-".join(kept or words)


def simplest_form(subject: str) -> str:
    """The subject without numbers and in the singular: "arrows-up-2" and "arrow-up-alt" give "arrow-up".

    It is a key by which names are compared, and need not be a word: that of "news" is "new".
    """
    return "-".join(_singular(word) for word in without_numbers(subject).split("-"))


def _singular(word: str) -> str:
    for ending, instead in _PLURALS:
        if ending.search(word):
            return ending.sub(instead, word)
    return word


def split_of(key: str, icon_set: str) -> Split:
    """A pure function of the subject and the set.

    A tenth of the subjects is test, a tenth validation. Of the others, each set's icon goes to `composition`
    with a chance of 1 in 20: a model scored on it has trained on the subject and on the set, but never on
    both together.

    Args:
        key: the subject, or the hexcode of the emoji whose name it is.
        icon_set: the set's prefix, for example "tabler".
    """
    n = _number(key)
    if n % 10 == 0:
        return "test"
    if n % 10 == 1:
        return "validation"
    return "composition" if _number(f"{key}/{icon_set}") % 20 == 0 else "train"


def most_held_out(splits: Collection[Split]) -> Split:
    """The split of a picture that stands under several names or in several sets."""
    return next(split for split in HELD_OUT_FIRST if split in splits)


def captions_of(words: str, kind: str, set_name: str, others: Iterable[str] = ()) -> list[str]:
    """The captions of an icon; training draws one of them each time.

    Args:
        words: the subject's words.
        kind: its variant, or "coloured", or both; "" if the set names none.
        set_name: the set's name.
        others: the words of its other names.
    """
    hand = f"{set_name}, {kind}" if kind else set_name
    found = [words, f"{words}, {kind}", f"{words}, {hand}", *others]
    return list(dict.fromkeys(text for text in found if not text.endswith(", ")))


def emoji_subjects(emojibase: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """An emoji's subject by its label, words joined by "-", from emojibase's data.json."""
    found = {}
    for entry in emojibase:
        label = re.sub(r"[^a-z0-9]+", "-", entry["label"].lower()).strip("-")
        found[label] = "-".join(part for part in entry["hexcode"].lower().split("-") if part != "fe0f")
    return found


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)
