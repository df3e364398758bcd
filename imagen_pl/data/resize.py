"""Shrinks encoded images, for smaller data sets."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from imagen_pl.data.transforms import exif_turn, wide_grey_to_rgb

_QUALITY = 95
# Lossy formats are written as lossy again, to keep files small; everything else becomes PNG.
_LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WEBP", "AVIF": "WEBP"}
_PROFILED = ("RGB", "RGBA", "L", "P")  # other modes are converted, so their profile no longer fits


def shrink(image: bytes, side: int) -> bytes:
    """Shrink an encoded image to a shorter side of `side` px, antialiased; smaller images stay unchanged.

    JPEG stays JPEG, WebP and AVIF become WebP, both of quality 95, everything else PNG. Transparency and the
    colour profile are kept, EXIF rotation is applied. Raises one of UNREADABLE.
    """
    with Image.open(io.BytesIO(image)) as opened:
        width, height = opened.size
        if min(width, height) <= side:
            return image
        scale = side / min(width, height)
        size = (round(width * scale), round(height * scale))
        kind = _LOSSY.get(opened.format or "", "PNG")
        profile = opened.info.get("icc_profile") if opened.mode in _PROFILED else None
        turn = exif_turn(opened)
        # JPEG can be decoded at 1/2, 1/4 or 1/8; twice the target keeps the antialiasing exact.
        opened.draft(None, (2 * size[0], 2 * size[1]))
        opened.load()
        picture = _plain(opened).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if turn is not None:
        picture = picture.transpose(turn)
    options: dict[str, Any] = {"icc_profile": profile} if profile else {}
    picture.info = {}  # drops EXIF, which would rotate the image a second time
    out = io.BytesIO()
    picture.save(out, kind, quality=_QUALITY, **options)
    return out.getvalue()


def _plain(picture: Image.Image) -> Image.Image:
    """Convert to a mode that can be antialiased and that all formats above support."""
    if picture.mode.startswith(("I", "F")):
        return wide_grey_to_rgb(picture)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture if picture.mode in ("RGB", "L") else picture.convert("RGB")
