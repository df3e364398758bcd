"""Draws icons from SVG."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from PIL import Image

from imagen_pl.data.icon_sets import Icon
from imagen_pl.data.transforms import parse_background
from imagen_pl.errors import UserError

Background = Literal["white", "transparent"]

_THUMBNAIL = 32  # px


@dataclass(frozen=True)
class Drawn:
    """A drawn icon.

    Attributes:
        problem: why there is no picture, "" if there is one.
        image: WebP without loss.
        digest: of the pixels.
        thumbnail: grey, 32 px.
    """

    problem: str
    image: bytes = b""
    digest: str = ""
    thumbnail: bytes = b""


def icon_renderer(size: int, background: Background, ink: str) -> Callable[[str], Image.Image]:
    """A function that draws an SVG file; it pickles.

    Raises:
        UserError: resvg-py is missing, or the ink is no colour.
    """
    colour = "#{:02x}{:02x}{:02x}".format(*parse_background(ink))
    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise UserError("icons are drawn with resvg-py: pip install resvg-py") from error
    return partial(_render, size=size, background=background, ink=colour)


def _render(svg: str, size: int, background: Background, ink: str) -> Image.Image:
    import resvg_py

    png = resvg_py.svg_to_bytes(
        svg_string=svg.replace("currentColor", ink), width=size, height=size, skip_system_fonts=True
    )
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if background == "transparent":
        return picture
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")


def draw_all(icons: Sequence[Icon], renderer: Callable[[str], Image.Image]) -> list[Drawn]:
    """Each icon drawn."""
    return [_draw(icon, renderer) for icon in icons]


def _draw(icon: Icon, renderer: Callable[[str], Image.Image]) -> Drawn:
    try:
        picture = renderer(icon.svg)
    except (ValueError, OSError) as error:  # what resvg-py and Pillow raise for a broken drawing
        return Drawn(f"broken ({type(error).__name__})")
    if picture.getcolors(1) is not None:  # a single colour
        return Drawn("empty")
    encoded = io.BytesIO()
    picture.save(encoded, "WEBP", lossless=True, quality=50, method=4)
    flat = Image.new("RGBA", picture.size, "white")
    flat.alpha_composite(picture.convert("RGBA"))
    small = flat.convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    digest = hashlib.sha256(picture.tobytes()).hexdigest()[:16]
    return Drawn("", encoded.getvalue(), digest, small.tobytes())
