"""A data source's licence and styles, and whether its captions may be published."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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


def declaration_of(described: Mapping[str, Any] | None) -> SourceDeclaration:
    """The declaration of a source described by class_path and init_args, as in a release's config.json.

    The source is constructed but no data is loaded. A class that cannot be imported or constructed here
    declares nothing, so that nothing of it is published.
    """
    from imagen_pl.data.sources.base import Source, StreamSource

    module, _, name = str((described or {}).get("class_path", "")).rpartition(".")
    if described is None or not module:
        return SourceDeclaration()
    try:
        kind = getattr(importlib.import_module(module), name)
        if not (isinstance(kind, type) and issubclass(kind, (Source, StreamSource))):
            return SourceDeclaration()
        source: Source | StreamSource = kind(**(described.get("init_args") or {}))
    except (ImportError, AttributeError, TypeError, ValueError):
        return SourceDeclaration()
    return source.declaration()
