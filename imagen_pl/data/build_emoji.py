"""Builds the emoji data set that is included in the package: the same subjects in three styles.

The images and names come from npm packages (sources and licences: shipped/NOTICE.md). `build_emoji`
writes them to one Parquet file, on white, with splits that are a function of the subject.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from PIL import Image

from imagen_pl.data.npm_packages import files_in, find_packages, read_file
from imagen_pl.data.progress import with_progress
from imagen_pl.errors import UserError

Style = Literal["fluent", "noto", "twemoji"]
Split = Literal["train", "validation", "test", "composition"]

STYLES: tuple[Style, ...] = ("fluent", "noto", "twemoji")
SHIPPED = Path(__file__).parent / "shipped" / "emoji64.parquet"
MAX_SIZE = 256

_NAMES = "emojibase-data@17.0.0"
_FLUENT = "@lobehub/fluent-emoji-3d@1.1.0"
_PIXELS = {"noto": "emoji-datasource-google@16.0.0", "twemoji": "emoji-datasource-twitter@16.0.0"}
PIXELS_SIZE = 64
_DRAWINGS = {"noto": "@svgmoji/noto@3.2.0", "twemoji": "@discordapp/twemoji@16.0.1"}

# Of the file that ships.
SHIPPED_BY_STYLE: dict[Style, int] = {"fluent": 3372, "noto": 3786, "twemoji": 3786}
SHIPPED_IMAGES = sum(SHIPPED_BY_STYLE.values())

_TONES = {
    "1f3fb": "light",
    "1f3fc": "medium-light",
    "1f3fd": "medium",
    "1f3fe": "medium-dark",
    "1f3ff": "dark",
}
_WEBP_QUALITY = 90


def subject_of(hexcode: str) -> str:
    """The subject without skin tones: the lower-case hexcode without fe0f and 1f3fb to 1f3ff."""
    return "-".join(p for p in hexcode.lower().split("-") if p != "fe0f" and p not in _TONES)


def split_of(subject: str, style: Style) -> Split:
    """A pure function of subject and style; one style of some train subjects is held out as `composition`.

    A model that is scored on `composition` was trained on the subject in the two other styles, and on the
    style with other subjects, but never on both together.
    """
    n = int(hashlib.sha256(subject.encode()).hexdigest(), 16)
    if n % 10 == 0:
        return "test"
    if n % 10 == 1:
        return "validation"
    if n // 10 % 10 == 0 and style == STYLES[n // 100 % 3]:
        return "composition"
    return "train"


@dataclass(frozen=True)
class Emoji:
    """An emoji in emojibase; `name` is lower-case and includes the skin tones."""

    hexcode: str
    name: str
    tags: list[str]

    @property
    def skin_tone(self) -> str:
        """As "light", or "light, dark" for two people, or "" for the plain yellow one."""
        return ", ".join(_TONES[p] for p in self.hexcode.split("-") if p in _TONES)


def build_emoji(
    out: str | Path, size: int = 64, packages: str | Path | None = None, progress: bool = True
) -> Counter[tuple[str, str]]:
    """Write the emoji as one Parquet file that `datasets.load_dataset` can read.

    Up to 64 px the images are the packages' own 64 px images; above, their SVG files are rendered with
    resvg-py (about 200 of Noto's are missing there). Fluent is always scaled down from 256 px.

    Args:
        out: the Parquet file to write.
        size: side of the images, 8 to 256 px.
        packages: folder with the packages' .tgz files; None fetches them with npm.
        progress: show a progress bar.

    Returns:
        Number of images by (split, style).

    Raises:
        UserError: npm, a package or resvg-py is missing, or the size is out of range.
    """
    if not 8 <= size <= MAX_SIZE:
        raise UserError(f"--size {size} is not between 8 and {MAX_SIZE}: the fluent drawings have 256 px")
    others = _PIXELS if size <= PIXELS_SIZE else _DRAWINGS
    draw = _svg_renderer(size) if size > PIXELS_SIZE else None
    with tempfile.TemporaryDirectory() as temporary:
        files = find_packages([_NAMES, _FLUENT, *others.values()], packages, Path(temporary))
        emoji = _read_names(files[_NAMES])
        pictures: dict[str, dict[str, bytes]] = {
            "fluent": _members(files[_FLUENT], "package/assets/"),
            "noto": _members(files[others["noto"]], "package/img/google/64/")
            if draw is None
            else _sprites(files[others["noto"]]),
            "twemoji": _members(
                files[others["twemoji"]], "package/img/twitter/64/" if draw is None else "package/dist/svg/"
            ),
        }
    rows: list[dict[str, Any]] = []
    shown = with_progress(emoji, f"drawing emoji at {size} px", unit=" emoji") if progress else emoji
    for one in shown:
        for style in STYLES:
            data = pictures[style].get(_key(one.hexcode))
            if data is not None:
                rows.append(_row(one, style, draw(data) if draw and style != "fluent" else data, size))
    _write(rows, Path(out))
    return Counter((row["split"], row["style"]) for row in rows)


def missing_drawings(counts: Counter[tuple[str, str]], size: int) -> list[str]:
    """Explains why a file of large images has fewer images than the included one; empty if it has as many."""
    if size <= PIXELS_SIZE:
        return []
    fewer = {
        style: shipped - sum(n for (_, theirs), n in counts.items() if theirs == style)
        for style, shipped in SHIPPED_BY_STYLE.items()
    }
    by_style = ", ".join(f"{style} {n:,}" for style, n in fewer.items() if n > 0)
    if not by_style:
        return []
    return [
        f"{sum(fewer.values()):,} fewer than the {SHIPPED_IMAGES:,} that ship ({by_style}): above "
        f"{PIXELS_SIZE} px noto and twemoji are drawn from the SVG files of {_DRAWINGS['noto']} and "
        f"{_DRAWINGS['twemoji']}, which lack these emoji"
    ]


def _row(emoji: Emoji, style: Style, data: bytes, size: int) -> dict[str, Any]:
    subject = subject_of(emoji.hexcode)
    encoded = io.BytesIO()
    _on_white(data, size).save(encoded, "WEBP", quality=_WEBP_QUALITY, method=6)
    return {
        "image": {"bytes": encoded.getvalue(), "path": f"{style}/{emoji.hexcode}.webp"},
        "caption": f"{emoji.name}, {style} style",
        "name": emoji.name,
        "tags": emoji.tags,
        "style": style,
        "subject": subject,
        "hexcode": emoji.hexcode,
        "skin_tone": emoji.skin_tone,
        "split": split_of(subject, style),
    }


def _on_white(data: bytes, size: int) -> Image.Image:
    # On white before resizing, so that the colour of transparent pixels does not bleed into the edges.
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    small = white.convert("RGB")
    return small if small.size == (size, size) else small.resize((size, size), Image.Resampling.LANCZOS)


def _write(rows: list[dict[str, Any]], out: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.string()
    schema = pyarrow.schema(
        {
            "image": pyarrow.struct({"bytes": pyarrow.binary(), "path": text}),
            "caption": text,
            "name": text,
            "tags": pyarrow.list_(text),
            "style": text,
            "subject": text,
            "hexcode": text,
            "skin_tone": text,
            "split": text,
        }
    )
    word = {"dtype": "string", "_type": "Value"}
    features: dict[str, Any] = dict.fromkeys(schema.names, word)
    features |= {"image": {"_type": "Image"}, "tags": {"feature": word, "_type": "List"}}
    # Marks the column as images for the `datasets` library.
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(out.name + ".unfinished")
    parquet.write_table(
        pyarrow.Table.from_pylist(rows, schema), unfinished, compression="zstd", row_group_size=1024
    )
    unfinished.replace(out)


# ------------------------------------------------------------------ packages


def _key(hexcode: str) -> str:
    """The same key for all packages' file names: lower case, no fe0f, no leading zeros."""
    parts = re.split("[-_]", hexcode.lower())
    return "-".join(p.lstrip("0") for p in parts if p != "fe0f")


def _members(archive: Path, folder: str) -> dict[str, bytes]:
    found = {
        _key(Path(name).stem): read()
        for name, read in files_in(archive)
        if name.startswith(folder) and name.endswith((".png", ".webp", ".svg"))
    }
    if not found:
        raise UserError(f"{archive} holds no pictures under {folder}: fetch it again")
    return found


def _read_names(archive: Path) -> list[Emoji]:
    """All emoji in emojibase's order, each plain one followed by its skin tones."""
    emoji: list[Emoji] = []
    for plain in json.loads(read_file(archive, "package/en/data.json")):
        for entry in (plain, *plain.get("skins", [])):
            emoji.append(Emoji(entry["hexcode"].lower(), entry["label"].lower(), plain.get("tags", [])))
    return emoji


def _sprites(archive: Path) -> dict[str, bytes]:
    """One SVG file for each drawing of a sprite sheet, in which they overlap."""
    sheet = read_file(archive, "package/sprites/all.svg")
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    drawings = {}
    for child in ElementTree.fromstring(sheet):
        if child.get("id"):
            drawings[_key(child.attrib.pop("id"))] = ElementTree.tostring(child)
    return drawings


def _svg_renderer(size: int) -> Callable[[bytes], bytes]:
    try:
        import resvg_py
    except ImportError as error:
        raise UserError(
            f"emoji above {PIXELS_SIZE} px are drawn from SVG with resvg-py: pip install resvg-py"
        ) from error
    return lambda svg: bytes(
        resvg_py.svg_to_bytes(svg_string=svg.decode(), width=size, height=size, skip_system_fonts=True)
    )
