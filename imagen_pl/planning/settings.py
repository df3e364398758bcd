"""Settings with the reason for each, written as commented YAML."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

_WIDTH = 112

Block: TypeAlias = "list[Setting]"
Value: TypeAlias = "str | int | float | bool | dict[Any, Any] | list[Any] | None"


@dataclass
class Setting:
    """One key of a configuration.

    key: its name.
    value: a plain value, a list of settings (a section) or `Items` (a list of sections).
    why: the comment above it.
    """

    key: str
    value: Value | Block | Items
    why: str = ""


@dataclass
class Items:
    """A list in YAML whose items are sections, each with a comment."""

    items: Sequence[tuple[str, Block]]


def part(class_path: str, **init_args: Any) -> Block:
    """A class_path with its init_args, on two lines."""
    found = [Setting("class_path", class_path)]
    return [*found, Setting("init_args", init_args)] if init_args else found


def to_yaml(settings: Block, head: str) -> str:
    """A configuration file.

    Args:
        settings: the top level.
        head: comment at the top of the file.
    """
    lines = [*(f"# {line}".rstrip() for line in head.splitlines())]
    for setting in settings:
        lines += ["", *_lines(setting, 0)]
    return "\n".join(lines) + "\n"


def to_dict(settings: Block) -> dict[str, Any]:
    """The settings as a dictionary, as read back from the file."""
    found: dict[str, Any] = yaml.safe_load(to_yaml(settings, ""))
    return found


def _lines(setting: Setting, indent: int) -> list[str]:
    pad = " " * indent
    lines = _comment(setting.why, indent)
    value = setting.value
    if isinstance(value, Items):
        if not value.items:
            return [*lines, f"{pad}{setting.key}: []"]
        lines.append(f"{pad}{setting.key}:")
        for why, block in value.items:
            lines += _comment(why, indent + 2)
            inner = [line for one in block for line in _lines(one, indent + 4)]
            lines += [f"{pad}  - {inner[0].strip()}", *inner[1:]]
    elif isinstance(value, list) and value and all(isinstance(one, Setting) for one in value):
        lines.append(f"{pad}{setting.key}:")
        for one in value:
            lines += _lines(one, indent + 2)
    elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        lines += [f"{pad}{setting.key}:", *(f"{pad}  - {_flow(one)}" for one in value)]
    else:
        lines.append(f"{pad}{setting.key}: {_flow(value)}")
    return lines


def _comment(why: str, indent: int) -> list[str]:
    pad = " " * indent
    return [f"{pad}# {line}" for line in textwrap.wrap(why, _WIDTH - indent - 2, break_on_hyphens=False)]


def _flow(value: Any) -> str:
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...").removesuffix("\n")


def number(value: float) -> float | int:
    """Three significant digits; an int if the number is whole, so that YAML shows no decimal point."""
    return int(value) if float(value).is_integer() else float(f"{value:.3g}")
