"""MkDocs hook: TeX between dollars becomes MathML, which browsers render without a script or a network."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Convert all equations outside of code."""
    parts = _CODE.split(markdown)
    return "".join(part if part.startswith("`") else _with_equations(part) for part in parts)


def _with_equations(text: str) -> str:
    # The element around a display equation scrolls sideways where the screen is narrow.
    text = re.sub(
        r"\$\$(.+?)\$\$",
        lambda m: f'<div class="equation">{convert(m[1], display="block")}</div>',
        text,
        flags=re.DOTALL,
    )
    # A line that begins with <math> would become a paragraph of its own.
    return re.sub(r"(?<!\\)\$([^$\n]+)\$", lambda m: f"<span>{convert(m[1])}</span>", text)
