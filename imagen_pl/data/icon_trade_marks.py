"""Names of trade marks, so that their logos can be left out of the icons.

Iconify marks sets of logos, but other sets draw logos too, under plain names such as "facebook". A name that
several sets of logos have is a trade mark, unless it is also an ordinary word.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from imagen_pl.data.npm_packages import files_in

_SETS = 6  # sets of logos that must have a name
_SUFFIX = re.compile(r"-(icon|original|plain|line|wordmark|logo|light|dark|colou?r|\d+)$")
# Read by eye: names that six or more sets of logos have, and that icons also use in their ordinary meaning.
_ORDINARY = frozenset(
    {
        "abstract", "amp", "analogue", "apex", "arc", "atom", "audible", "babel", "bamboo", "bat",
        "bit", "blackberry", "blender", "bootstrap", "bower", "box", "brave", "buffer", "bun", "c",
        "composer", "confluence", "css", "dart", "dash", "diaspora", "discourse", "discover", "drone",
        "edge", "elastic", "electron", "element", "elementary", "elk", "expo", "flask", "flux",
        "gemini", "ghost", "gin", "go", "grunt", "gulp", "helm", "hive", "honey", "ink", "iris", "json",
        "kick", "lens", "less", "line", "lit", "loom", "markdown", "matrix", "max", "medium", "mega",
        "messenger", "meta", "meteor", "mix", "neon", "notion", "obsidian", "one", "oracle", "origin",
        "pandora", "plume", "pocket", "poly", "polygon", "r", "ram", "ray", "react", "realm", "ring",
        "ruby", "rust", "salt", "signal", "sketch", "sky", "smart", "solid", "spring", "steam",
        "stellar", "stylus", "swift", "target", "threads", "tidal", "tor", "unity", "ups", "vine",
        "wire", "wise", "x", "yarn", "zap", "zen", "zig", "zoom",
    }
)  # fmt: skip
_FURTHER = frozenset({"chrome"})
_ALSO_FIRST_WORDS = frozenset({"git"})  # "git" is a logo, "git branch" is not


def trade_marks(archive: Path, sets_of_logos: Collection[str]) -> frozenset[str]:
    """Names of trade marks, words joined by "-".

    Args:
        archive: the package's .tgz file.
        sets_of_logos: prefixes of the sets of logos.
    """
    files = {f"package/json/{prefix}.json" for prefix in sets_of_logos}
    counts: Counter[str] = Counter()
    for name, read in files_in(archive):
        if name in files:
            data = json.loads(read())
            names = {*data["icons"], *data.get("aliases", {})}
            counts.update(names | {_SUFFIX.sub("", each) for each in names})
    return frozenset(name for name, count in counts.items() if count >= _SETS) - _ORDINARY | _FURTHER


def is_trade_mark(subject: str, marks: Collection[str]) -> bool:
    """Whether a subject, words joined by "-", is a trade mark or begins with one, as "google-drive" does."""
    first = subject.partition("-")[0]
    return subject in marks or (first != subject and first in marks and first not in _ALSO_FIRST_WORDS)
