"""A data source's licence, styles and vocabulary, and whether its captions may be published."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagen_pl.data.sources.base import Source, StreamSource


@dataclass(frozen=True)
class SourceDeclaration:
    """The defaults publish nothing.

    Args:
        licence: authors and licences of the images, as text for the model card; None if unknown.
        styles: styles that captions name, as in "red heart, noto style"; empty if there are none.
        captions_may_be_published: whether a published model may contain the source's settings and some of
            its captions.
    """

    licence: str | None = None
    styles: tuple[str, ...] = ()
    captions_may_be_published: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """Subjects and attributes in the captions of a source's training images.

    Args:
        noun: plural noun for the pictures, for example "icons".
        subjects: names of the subjects, the most frequent first.
        attributes: attributes that follow a subject and a comma, for example "outline", the most frequent
            first.
        subject_alone: whether there are captions without an attribute.
    """

    noun: str
    subjects: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    subject_alone: bool = True


def declaration_of(described: Mapping[str, Any] | None) -> SourceDeclaration:
    """The declaration of a source described by class_path and init_args, as in a release's config.json.

    The source is constructed but no data is loaded. A class that cannot be imported or constructed here
    declares nothing, so that nothing of it is published.
    """
    source = _source(described)
    return SourceDeclaration() if source is None else source.declaration()


def vocabulary_of(described: Mapping[str, Any] | None) -> Vocabulary | None:
    """The vocabulary of a source described by class_path and init_args; reads its captions.

    None if the source or its data is not available, if it has no vocabulary, or if its captions may not be
    published.
    """
    source = _source(described)
    if source is None or not source.declaration().captions_may_be_published:
        return None
    try:
        return source.vocabulary()
    except (OSError, ValueError, KeyError):  # a missing or damaged file
        return None


def _source(described: Mapping[str, Any] | None) -> Source | StreamSource | None:
    """Construct the described source; None if its class cannot be imported or constructed here."""
    from imagen_pl.data.sources.base import Source, StreamSource

    module, _, name = str((described or {}).get("class_path", "")).rpartition(".")
    if described is None or not module:
        return None
    try:
        kind = getattr(importlib.import_module(module), name)
        if not (isinstance(kind, type) and issubclass(kind, (Source, StreamSource))):
            return None
        source: Source | StreamSource = kind(**(described.get("init_args") or {}))
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
    return source
