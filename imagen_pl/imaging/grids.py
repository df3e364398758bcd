"""Pictures: to and from tensors, in sheets with captions, in files that say where they come from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ExifTags, Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:  # torch takes seconds to import, and the command line checks its arguments first
    from jaxtyping import Float, UInt8
    from torch import Tensor

_MARGIN = 6
_LABEL_LINES = 3


def to_uint8(images: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
    """From -1 to 1, to 0 to 255."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).byte()


def to_pil(images: UInt8[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """Images of 0 to 255 as PIL images."""
    return [Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()) for image in images]


def strip(images: Sequence[Image.Image], smallest: int = 96) -> Image.Image:
    """Equally large pictures side by side, each at least `smallest` px wide.

    Small ones are enlarged by a whole number, pixel by pixel, so that nothing is invented. Of pictures with
    transparency (RGBA) the strip is transparent as well.
    """
    width, height = images[0].size
    scale = max(1, math.ceil(smallest / width))
    width, height = width * scale, height * scale
    gap = 2
    row = _blank(images[0].mode, (len(images) * (width + gap) - gap, height))
    for i, image in enumerate(images):
        row.paste(image.resize((width, height), Image.Resampling.NEAREST), (i * (width + gap), 0))
    return row


def _blank(mode: str, size: tuple[int, int]) -> Image.Image:
    """White, and transparent where the mode can be."""
    return Image.new("RGBA", size, (255, 255, 255, 0)) if mode == "RGBA" else Image.new("RGB", size, "white")


def labelled_grid(
    pictures: Sequence[Image.Image], labels: Sequence[str], columns: int, smallest: int = 96
) -> Image.Image:
    """Pictures in rows of `columns`, row by row, each with its label beneath.

    Args:
        pictures: all of one size; small ones are enlarged to at least `smallest` px.
        labels: one a picture, broken into up to three lines; "" leaves its place empty.
        columns: pictures a row.
        smallest: least width of a picture, px.
    """
    if len(pictures) != len(labels):
        raise ValueError(f"{len(pictures)} pictures but {len(labels)} labels")
    cells = [strip([picture], smallest) for picture in pictures]
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


def save_picture(picture: Image.Image, file: Path, facts: Mapping[str, object]) -> None:
    """Write a picture, and in it where it comes from.

    Args:
        picture: of any kind that the file's can hold.
        file: .png keeps the facts as text chunks, one each; .webp and .jpg as JSON in EXIF's
            ImageDescription.
        facts: as its prompt, seed and model.
    """
    if file.suffix.lower() == ".png":
        chunks = PngInfo()
        for name, value in facts.items():
            chunks.add_itxt(name, str(value))
        picture.save(file, pnginfo=chunks)
        return
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = json.dumps(dict(facts))
    # exact: the colour below transparent pixels is kept, which filtered textures take in.
    picture.save(file, exif=exif, quality=95, exact=True)


def wrap(
    label: str, width: float, face: ImageFont.ImageFont | ImageFont.FreeTypeFont, most: int = _LABEL_LINES
) -> list[str]:
    """A label in up to `most` lines of at most `width` px; what does not fit ends in an ellipsis."""
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
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [_shorten(line, width, face) for line in lines]


def _shorten(line: str, width: float, face: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    if face.getlength(line) <= width:
        return line
    while line and face.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


@lru_cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """DejaVu Sans where the machine has it, since it knows most scripts; else Pillow's own."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)
