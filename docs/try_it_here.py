"""MkDocs hook: adds a link to the exported web page if `imagen-pl export` has written it to docs/try."""

from __future__ import annotations

from typing import Any

_PAGE = "try/index.html"
_PLACE = "<!-- the page, where it was exported -->"
_LINK = f"[Draw in this browser]({_PAGE}){{ .md-button .md-button--primary }}"


def on_page_markdown(markdown: str, files: Any, **_: Any) -> str:
    """Replace the placeholder by the link, or remove it if there is no exported page."""
    return markdown.replace(_PLACE, _LINK if files.get_file_from_path(_PAGE) else "")
