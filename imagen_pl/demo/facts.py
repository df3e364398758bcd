"""What a model was trained on, if that may be published: a line, examples and suggestions for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imagen_pl.data.sources.declaration import Vocabulary, declaration_of, vocabulary_of
from imagen_pl.demo.checks import MAX_PROMPT
from imagen_pl.inference.pipeline import TextToImage

SUGGESTIONS = 8
_NAMED = 6  # style words in the line


@dataclass(frozen=True)
class Knowledge:
    """What the captions of a model's training images name.

    Args:
        captions: some of them, if they may be published.
        vocabulary: their subjects and attributes; None if that is not known.
    """

    captions: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None

    @classmethod
    def of(cls, model: TextToImage) -> Knowledge:
        """From the description of a model, and the data that it names, if that is on this machine."""
        data: dict[str, Any] = model.description.get("data") or {}
        if not declaration_of(data).captions_may_be_published:
            return cls()
        captions = dict.fromkeys(
            c for c in model.description.get("captions") or () if 0 < len(c) <= MAX_PROMPT
        )
        return cls(tuple(captions), vocabulary_of(data))

    def line(self) -> str:
        """For example "It knows 900 subjects of icons; style words: outline and 70 more."; "" if unknown."""
        known = self.vocabulary
        if known is None or not known.subjects:
            return ""
        if known.noun == "domains":
            return f"It knows {len(known.subjects):,} styles, such as {_listed(known.subjects)}."
        line = f"It knows {len(known.subjects):,} subjects of {known.noun}"
        return line + (f"; style words: {_listed(known.attributes)}." if known.attributes else ".")

    def examples(self) -> list[str]:
        """Three prompts; none if nothing may be published."""
        known = self.vocabulary
        if known is None or not known.attributes:
            return list(self.captions[:: max(1, len(self.captions) // 3)][:3])
        if known.subject_alone:
            first, *rest = known.subjects[:3]
            return [first, *(f"{s}, {a}" for s, a in zip(rest, known.attributes, strict=False))]
        subjects = set(known.subjects)
        named = dict.fromkeys(c.partition(",")[0] for c in self.captions)
        # Plain names: a skin tone follows a colon.
        plain = [name for name in named if name in subjects and ":" not in name] or list(known.subjects)
        spread = plain[:: max(1, len(plain) // 3)][:3]
        return [f"{s}, {a}" for s, a in zip(spread, known.attributes * 3, strict=False)]

    def edit(self) -> tuple[str, str]:
        """A prompt, and the same with another style word, or with another subject; empty if not known."""
        known, examples = self.vocabulary, self.examples()
        if known is not None and len(known.attributes) > 1 and examples:
            subject = examples[0].partition(",")[0]
            return f"{subject}, {known.attributes[0]}", f"{subject}, {known.attributes[1]}"
        return (examples[0], examples[-1]) if examples else ("", "")

    def domains(self) -> list[str]:
        """Captions of the domains of a Translator; none if they may not be published."""
        known = self.vocabulary
        return list(self.captions if known is None else known.subjects)

    def suggestions(self, text: str) -> list[str]:
        """Prompts that begin as the text does, then others that have a word beginning so.

        After a comma they complete the style word.
        """
        text = " ".join(text.lower().split())
        known = self.vocabulary
        if not text:
            return self.examples()
        if known is None:
            return _matching(self.captions, text)
        subject, comma, begun = text.partition(",")
        if comma:
            return [f"{subject}, {a}" for a in _matching(known.attributes, begun.strip())]
        found = _matching(known.subjects, text)
        if known.subject_alone or not known.attributes:
            return found
        return [f"{s}, {known.attributes[k % len(known.attributes)]}" for k, s in enumerate(found)]


def _matching(names: Sequence[str], begun: str) -> list[str]:
    first = [name for name in names if name.lower().startswith(begun)]
    later = [name for name in names if f" {begun}" in name.lower() and name not in first]
    return [*first, *later][:SUGGESTIONS]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
