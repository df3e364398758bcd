"""From an encoded image to sRGB pixels at the training resolution.

Axes: h w pixels.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageCms, ImageColor
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.types import width_of

Fit = Literal["crop", "pad"]

# Everything that Pillow raises for a broken file, or for a decompression bomb.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)

_TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")
_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def parse_background(background: str) -> tuple[int, int, int]:
    """A colour's name or #rrggbb as RGB, 0 to 255. Raises UserError for anything else."""
    try:
        return ImageColor.getrgb(background)[:3]
    except ValueError:
        raise UserError(f"background {background!r} is no colour: use a name as white, or #rrggbb") from None


def read_size(image: bytes | Path) -> tuple[int, int]:
    """Width and height in px, from the header alone. Raises one of UNREADABLE."""
    with _open(image) as opened:
        return opened.size


def decode(
    image: bytes | Path,
    resolution: int,
    fit: Fit = "crop",
    background: tuple[int, int, int] = (255, 255, 255),
    aspect_ratio: float = 1.0,
    alpha: bool = False,
) -> UInt8[Tensor, "c h w"]:
    """Decode straight to the size of training, antialiased.

    EXIF rotation is applied; 16-bit greys keep their range; colours with an RGB profile are converted to
    sRGB.

    Args:
        image: the encoded image, or its file.
        resolution: height of the result, px.
        fit: "crop" keeps the largest centred part of the wanted shape; "pad" keeps the whole image and fills
            up with `background`.
        background: also replaces transparent pixels.
        aspect_ratio: width / height of the result.
        alpha: give a fourth channel, alpha. Padded sides are transparent then. The colours are those on
            `background`, which should be white (imagen_pl.imaging.transparency).

    Raises:
        One of UNREADABLE.
    """
    size = (width_of(resolution, aspect_ratio), resolution)
    with _open(image) as opened:
        turn = exif_turn(opened)
        if turn in _SIDEWAYS:
            size = size[::-1]
        # JPEG can be decoded at 1/2, 1/4 or 1/8; twice the target keeps the antialiasing exact.
        opened.draft(None, (2 * size[0], 2 * size[1]))
        profile = opened.info.get("icc_profile")
        opened.load()
        picture = _to_rgb(opened, background)
        # Resized apart from the colours, which Pillow would divide by it.
        opacity = _alpha(opened) if alpha else None
    picture = _turned(_fit(picture, size, fit, background), turn)
    if profile:
        picture = _to_srgb(picture, profile)
    pixels = np.array(picture, dtype=np.uint8)
    if opacity is not None:
        pixels = np.dstack([pixels, np.asarray(_turned(_fit(opacity, size, fit, 0), turn))])
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def as_shown(image: bytes | Path) -> Image.Image:
    """The whole picture in sRGB, turned as EXIF asks: RGB, or RGBA if it has transparency.

    Raises one of UNREADABLE.
    """
    with _open(image) as opened:
        profile, turn = opened.info.get("icc_profile"), exif_turn(opened)
        opened.load()
        clear = opened.mode in _TRANSPARENT or "transparency" in opened.info
        picture = opened.convert("RGBA") if clear else _to_rgb(opened, (255, 255, 255))
    if turn is not None:
        picture = picture.transpose(turn)
    if profile:
        colours = _to_srgb(picture.convert("RGB"), profile)
        if clear:
            colours.putalpha(picture.getchannel("A"))
        picture = colours
    return picture


def _open(image: bytes | Path) -> Image.Image:
    if isinstance(image, Path):
        return Image.open(image)
    # Pillow tries some forty formats before WebP, and takes longer for it than for decoding an emoji.
    webp = image[:4] == b"RIFF" and image[8:12] == b"WEBP" and "WEBP" in Image.OPEN
    return Image.open(io.BytesIO(image), formats=["WEBP"] if webp else None)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings: large images are normal here, and EXIF data is often slightly broken.

    Decompression bombs still raise. Warning filters are global to the process: use it in one thread only.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def exif_turn(picture: Image.Image) -> Image.Transpose | None:
    """The rotation or flip that EXIF asks for; None if there is none."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF raises all kinds of errors, though the pixels are fine
        return None
    return _TURNS.get(orientation)


def _to_rgb(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith(("I", "F")):
        return wide_grey_to_rgb(picture)
    if picture.mode in _TRANSPARENT or "transparency" in picture.info:
        # Before resizing, so that the colour of fully transparent pixels does not bleed into the edges.
        layer = picture.convert("RGBA")
        below = Image.new("RGBA", layer.size, background)
        below.alpha_composite(layer)
        return below.convert("RGB")
    return picture.convert("RGB")


def wide_grey_to_rgb(picture: Image.Image) -> Image.Image:
    """Scale 16-bit integers by 1/257, and floats by their range. Pillow's own conversion clips at 255."""
    values = np.asarray(picture, dtype=np.float32)
    if picture.mode == "F":
        top = float(values.max(initial=0.0))
        scale = 255.0 if top <= 1 else 1.0 if top <= 255 else 1 / 257
    else:
        scale = 1 / 257
    return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8)).convert("RGB")


def _alpha(picture: Image.Image) -> Image.Image:
    """How opaque each pixel is, 0 to 255."""
    clear = picture.mode in _TRANSPARENT or "transparency" in picture.info
    if not clear or picture.mode.startswith(("I", "F")):
        return Image.new("L", picture.size, 255)
    return picture.convert("RGBA").getchannel("A")


def _turned(picture: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    """The picture as EXIF asks; after a centred crop this gives the same result, and is cheaper."""
    return picture if turn is None else picture.transpose(turn)


def _fit(
    picture: Image.Image, wanted: tuple[int, int], fit: Fit, background: tuple[int, int, int] | int
) -> Image.Image:
    width, height = picture.size
    if fit == "crop":
        kept: tuple[float, float] = (width, width * wanted[1] / wanted[0])
        if kept[1] > height:
            kept = (height * wanted[0] / wanted[1], height)
        left, top = (width - kept[0]) / 2, (height - kept[1]) / 2
        return _resize(picture, wanted, (left, top, left + kept[0], top + kept[1]))
    scale = min(wanted[0] / width, wanted[1] / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = _resize(picture, size, (0, 0, width, height))
    padded = Image.new(picture.mode, wanted, background)
    padded.paste(small, ((wanted[0] - size[0]) // 2, (wanted[1] - size[1]) // 2))
    return padded


def _resize(
    picture: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Image.Image:
    if picture.size == size and box == (0, 0, *size):
        return picture
    return picture.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    transform = _srgb_transform(profile)
    if transform is None:
        return picture
    return ImageCms.applyTransform(picture, transform) or picture


@functools.lru_cache(maxsize=16)
def _srgb_transform(profile: bytes) -> Any:
    """From an RGB profile to sRGB; None if it is sRGB already, not RGB, or broken."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != "RGB":
            return None
        if "sRGB" in (source.profile.profile_description or ""):
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
