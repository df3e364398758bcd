"""Converts an image to SVG.

The image is enlarged, reduced to as few colours as possible, and traced with vtracer (MIT).
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from imagen_pl.errors import UserError
from imagen_pl.imaging.transparency import picture_on_white

_TRACED_PX = 512  # longer side to which pictures are enlarged
_MAX_ERROR = 8.0  # mean difference of the reduced picture, levels of 255
_WRONG, _MAX_WRONG = 72, 0.01  # and at most this share of its pixels may differ by more levels than this
_COLOURS = (2, 3, 4, 6, 8)
_WHITE = 240  # channels from here on are background


def trace(picture: Image.Image) -> str:
    """The SVG of a picture on white; the background is left out.

    Outline and solid icons get one colour, other pictures up to eight.

    Raises:
        UserError: vtracer is not installed.
    """
    try:
        import vtracer
    except ImportError:
        raise UserError("writing SVG needs vtracer: pip install 'imagen_pl[svg]'") from None
    flat = picture_on_white(picture)
    factor = max(1, _TRACED_PX // max(flat.size))
    large = flat.resize((factor * flat.width, factor * flat.height), Image.Resampling.BICUBIC)
    for colours in _COLOURS:
        reduced = _reduced(large, colours)
        if _shows(reduced, flat):
            break
    traced = vtracer.convert_raw_image_to_svg(
        _png(reduced),
        img_format="png",
        colormode="color",
        hierarchical="stacked",
        mode="spline",
        filter_speckle=_TRACED_PX // 64,
        color_precision=8,
        layer_difference=0,
        corner_threshold=60,
        length_threshold=4.0,
        splice_threshold=45,
        path_precision=1,
    )
    paths = re.findall(r"<path [^>]*/>", traced)
    if paths and _is_white(paths[0]):
        paths = paths[1:]  # stacked shapes begin with the background
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{flat.width}" height="{flat.height}" '
        f'viewBox="0 0 {large.width} {large.height}">\n' + "\n".join(paths) + "\n</svg>\n"
    )


def save_svg(picture: Image.Image, file: Path, metadata: Mapping[str, object]) -> None:
    """Trace a picture and write the SVG, with facts about its origin as its description."""
    about = "; ".join(f"{name}: {value}" for name, value in metadata.items())
    start, end = trace(picture).split("\n", 1)
    file.write_text(f"{start}\n<desc>{escape(about)}</desc>\n{end}", encoding="utf-8")


def _reduced(picture: Image.Image, colours: int) -> Image.Image:
    """The picture in so many colours, each the median of its area; nearly white ones become white."""
    quantised = picture.quantize(colours, Image.Quantize.MEDIANCUT, kmeans=4, dither=Image.Dither.NONE)
    labels, pixels = np.asarray(quantised), np.asarray(picture).copy()
    for label in np.unique(labels):
        colour = np.median(pixels[labels == label], axis=0).astype(np.uint8)
        pixels[labels == label] = 255 if (colour >= _WHITE).all() else colour
    return Image.fromarray(pixels)


def _shows(reduced: Image.Image, original: Image.Image) -> bool:
    """Whether it is close enough at the original's size, where smooth edges are mixtures of colours again."""
    small = reduced.resize(original.size, Image.Resampling.BOX)
    difference = np.abs(np.asarray(small, np.float32) - np.asarray(original, np.float32))
    wrong = float((difference.max(-1) > _WRONG).mean())
    return bool(difference.mean() <= _MAX_ERROR) and wrong <= _MAX_WRONG


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _is_white(path: str) -> bool:
    found = re.search(r'fill="#([0-9A-Fa-f]{6})"', path)
    return found is not None and min(bytes.fromhex(found[1])) >= _WHITE
