"""Hook of mkdocs: TeX between dollars becomes MathML, which browsers draw without a script or a network."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Everything but code."""
    parts = _CODE.split(markdown)
    return "".join(part if part.startswith("`") else _with_equations(part) for part in parts)


def _with_equations(text: str) -> str:
    text = re.sub(r"\$\$(.+?)\$\$", lambda m: convert(m[1], display="block"), text, flags=re.DOTALL)
    return re.sub(r"(?<!\\)\$([^$\n]+)\$", lambda m: convert(m[1]), text)
