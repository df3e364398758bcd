"""Converts tensors to images, arranges images in grids with captions, and saves them with metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ExifTags, Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from imagen_pl.imaging.transparency import picture_on_white, straight

if TYPE_CHECKING:  # torch takes seconds to import, and the command line checks its arguments first
    from jaxtyping import Float, UInt8
    from torch import Tensor

_MARGIN = 6
_LABEL_LINES = 3


def to_uint8(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """Convert images from the range -1 to 1 to the range 0 to 255."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).byte()


def to_pil(images: UInt8[Tensor, "b c h w"]) -> list[Image.Image]:
    """Convert images of 0 to 255 to PIL images: RGB, or of four channels RGBA with straight alpha."""
    images = straight(images) if images.shape[1] == 4 else images
    return [Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()) for image in images]


def size_text(size: tuple[int, int]) -> str:
    """A width and height for messages: "32 px" of a square, else such as "48 x 32 px"."""
    width, height = size
    return f"{width} px" if width == height else f"{width} x {height} px"


def strip(images: Sequence[Image.Image], min_width: int = 96) -> Image.Image:
    """Images of equal size side by side, each at least `min_width` px wide.

    Small images are enlarged by a whole factor without smoothing. If the images have transparency (RGBA), the
    strip has it too.
    """
    width, height = images[0].size
    scale = max(1, math.ceil(min_width / width))
    width, height = width * scale, height * scale
    gap = 2
    row = _blank(images[0].mode, (len(images) * (width + gap) - gap, height))
    for i, image in enumerate(images):
        row.paste(image.resize((width, height), Image.Resampling.NEAREST), (i * (width + gap), 0))
    return row


def _blank(mode: str, size: tuple[int, int]) -> Image.Image:
    """A white image; transparent if the mode is RGBA."""
    return Image.new("RGBA", size, (255, 255, 255, 0)) if mode == "RGBA" else Image.new("RGB", size, "white")


def labelled_grid(
    pictures: Sequence[Image.Image],
    labels: Sequence[str],
    columns: int,
    min_width: int = 96,
    transparent: bool = False,
) -> Image.Image:
    """A grid of images, each with its label below.

    Args:
        pictures: images of equal size; small ones are enlarged to at least `min_width` px.
        labels: one an image, wrapped to up to three lines; "" leaves the space empty.
        columns: images a row.
        min_width: smallest width of an image, px.
        transparent: if the images have transparency, the grid has it too; else they are shown on white.
    """
    if len(pictures) != len(labels):
        raise ValueError(f"{len(pictures)} pictures but {len(labels)} labels")
    shown = pictures if transparent else [picture_on_white(picture) for picture in pictures]
    cells = [strip([picture], min_width) for picture in shown]
    width, height = cells[0].size
    size = 11 if width < 160 else 13
    face, line_height = font(size), size + 4
    wrapped = [wrap(label, width, face) for label in labels]
    label_height = max(map(len, wrapped)) * line_height
    columns = min(columns, len(cells))
    rows = math.ceil(len(cells) / columns)
    sheet = _blank(
        cells[0].mode,
        (columns * (width + _MARGIN) + _MARGIN, rows * (height + label_height + _MARGIN) + _MARGIN),
    )
    draw = ImageDraw.Draw(sheet)
    for i, (cell, lines) in enumerate(zip(cells, wrapped, strict=True)):
        left = _MARGIN + i % columns * (width + _MARGIN)
        top = _MARGIN + i // columns * (height + label_height + _MARGIN)
        sheet.paste(cell, (left, top))
        for n, line in enumerate(lines):
            draw.text((left, top + height + 1 + n * line_height), line, fill="#222222", font=face)
    return sheet


def save_picture(picture: Image.Image, file: Path, metadata: Mapping[str, object]) -> None:
    """Save an image with metadata about its origin.

    Args:
        picture: RGB, or RGBA, which a JPEG file gets on white.
        file: the output file. .png stores each fact in a text chunk; .webp and .jpg store them as JSON in
            EXIF's ImageDescription.
        metadata: the metadata, for example prompt, seed and model.
    """
    if file.suffix.lower() == ".png":
        chunks = PngInfo()
        for name, value in metadata.items():
            chunks.add_itxt(name, str(value))
        picture.save(file, pnginfo=chunks)
        return
    if file.suffix.lower() in (".jpg", ".jpeg"):
        picture = picture_on_white(picture)
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = json.dumps(dict(metadata))
    # exact: keep the colour of transparent pixels, which filtered textures blend in.
    picture.save(file, exif=exif, quality=95, exact=True)


def wrap(
    label: str,
    width: float,
    face: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    max_lines: int = _LABEL_LINES,
) -> list[str]:
    """Wrap a label to up to `max_lines` lines of at most `width` px; longer text ends in an ellipsis."""
    lines: list[str] = []
    line = ""
    for word in label.split():
        longer = f"{line} {word}".lstrip()
        if line and face.getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    if line:
        lines.append(line)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], " ".join(lines[max_lines - 1 :])]
    return [_shorten(line, width, face) for line in lines]


def _shorten(line: str, width: float, face: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    if face.getlength(line) <= width:
        return line
    while line and face.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


@lru_cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """DejaVu Sans if it is installed, since it covers most scripts; else Pillow's default font."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)
