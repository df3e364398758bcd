"""A small @iconify/json package with drawings of a few icons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen_pl.data.icon_sets import PACKAGE
from imagen_pl.data.npm_packages import archive_name
from tests.helpers.image_files import write_tar

CIRCLE = '<circle cx="12" cy="12" r="9" fill="currentColor"/>'
RING = '<circle cx="12" cy="12" r="9" fill="none" stroke="currentColor" stroke-width="2"/>'
SQUARE = '<path fill="currentColor" d="M4 4h16v16H4z"/>'
RED = '<path fill="#ff0000" d="M2 8h20v8H2z"/>'


def described(name: str, licence: str = "MIT", **more: Any) -> dict[str, Any]:
    """A set's entry in collections.json."""
    return {
        "name": name,
        "total": 1,
        "author": {"name": f"{name}'s author", "url": "https://example.org"},
        "license": {"title": licence, "spdx": licence, "url": f"https://example.org/{licence}"},
        "category": "UI 24px",
        "palette": False,
        **more,
    }


def icons(bodies: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A set's JSON; a body may be an entry of its own."""
    entries = {name: body if isinstance(body, dict) else {"body": body} for name, body in bodies.items()}
    return {"icons": entries, "width": 24, "height": 24, **more}


SETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "alpha": (
        described("Alpha Icons"),
        icons(
            {
                "disc": CIRCLE,
                "disc-outline": RING,
                "tile": SQUARE,
                "tile-copy": SQUARE,
                "tile-copy-outline": SQUARE,
                "blank": '<path d="" />',
                "torn": '<path d="M0 0',
                "old": {"body": RING, "hidden": True},
                "github-logo": CIRCLE,
            },
            suffixes={"": "Solid", "outline": "Outline"},
            aliases={
                "record": {"parent": "disc"},
                "disc-left": {"parent": "disc", "rotate": 1},
            },
        ),
    ),
    "beta": (
        described("Beta Colour", "CC-BY-4.0", palette=True),
        icons({"disc": RED.replace("ff0000", "00ff00"), "bar": RED}, height=16),
    ),
    "gamma": (described("Gamma", "GPL-3.0"), icons({"disc": CIRCLE})),
    "delta": (described("Delta Logos", category="Logos"), icons({"disc": CIRCLE})),
    "lines": (
        described("Lines", tags=["Uses Stroke"]),
        icons({"ring-16": CIRCLE, "ring-24": RING}),
    ),
}

EMOJI = [{"label": "bar", "hexcode": "1F36B"}]


def write_icon_packages(folder: Path, more: int = 0, names: Sequence[str] = ()) -> Path:
    """Write the .tgz files of both packages, with a set of `more` icons, or of these; return the folder."""
    sets = dict(SETS)
    names = names or [f"dot-{i}" for i in range(more)]
    if names:
        dots = {
            name: f'<circle cx="12" cy="12" r="{3 + 8 * i / len(names):.2f}"/>'
            for i, name in enumerate(names)
        }
        sets["many"] = (described("Many"), icons(dots))
    files = {"package/collections.json": json.dumps({p: info for p, (info, _) in sets.items()}).encode()}
    files |= {f"package/json/{prefix}.json": json.dumps(data).encode() for prefix, (_, data) in sets.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_tar(folder / archive_name(PACKAGE), files)
    emoji = {"package/en/data.json": json.dumps(EMOJI).encode()}
    write_tar(folder / "emojibase-data-17.0.0.tgz", emoji)
    return folder
