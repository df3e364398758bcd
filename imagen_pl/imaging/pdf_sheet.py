"""A contact sheet as PDF: A4 pages with text that can be searched and copied."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from PIL import Image, ImageFont

from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import strip, wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Lengths in points, 1/72 inch.
_WIDTH, _HEIGHT = 595.0, 842.0
_MARGIN, _GAP = 36.0, 8.0
_COLUMNS = 4  # images a row
_SIDE = (_WIDTH - 2 * _MARGIN - (_COLUMNS - 1) * _GAP) / _COLUMNS
_SIZE, _SMALL = 9.0, 6.5
_LEADING = 1.35  # line height in font sizes
_MAX_LINES = 6  # lines of a text; the rest is cut off


@dataclass(frozen=True)
class Drafts:
    """A row of the sheet.

    prompt: the prompt.
    pictures: the images sampled for it.
    seed: seed of the first image; the others have the seeds that follow.
    fields: further fields of the brief, by name.
    command: the command that samples the images again.
    """

    prompt: str
    pictures: Sequence[Image.Image]
    seed: int
    fields: dict[str, str]
    command: str


def write_pdf(file: IO[bytes], title: str, rows: Sequence[Drafts]) -> None:
    """Write the sheet; rows with one or two images are placed side by side.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib import font_manager
        from matplotlib.backends.backend_pdf import PdfPages
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError("a PDF needs a package: pip install matplotlib (an .html sheet needs none)") from None

    font = font_manager.findfont("DejaVu Sans")  # comes with matplotlib
    rows_per_line = max(1, _COLUMNS // len(rows[0].pictures))
    columns = min(len(rows[0].pictures), _COLUMNS)
    width = columns * (_SIDE + _GAP) - _GAP
    blocks = [_Block(row, width, columns, font) for row in rows]
    # No date, so that the same brief gives an identical file.
    with PdfPages(file, metadata={"Title": title, "CreationDate": None}) as pages, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box
        page: Figure | None = None
        top = 0.0
        for i in range(0, len(blocks), rows_per_line):
            line = blocks[i : i + rows_per_line]
            height = max(block.height for block in line)
            if page is None or top + height > _HEIGHT - _MARGIN:
                if page is not None:
                    pages.savefig(page)
                page, top = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72)), _MARGIN
                _write(page, _MARGIN, top, f"{title}, page {pages.get_pagecount() + 1}", _SIZE, "#555555")
                top += 2 * _SIZE
            for k, block in enumerate(line):
                block.draw(page, _MARGIN + k * (width + _GAP), top)
            top += height + 2 * _GAP
        pages.savefig(page)


class _Block:
    """The layout of a row: its images and its wrapped texts."""

    def __init__(self, row: Drafts, width: float, columns: int, font: str) -> None:
        self.row, self.columns = row, columns
        texts = [(row.prompt, _SIZE, "#000000")]
        texts += [(f"{name}: {text}", _SIZE, "#333333") for name, text in row.fields.items()]
        texts += [(row.command, _SMALL, "#555555")]
        self.lines = [
            (line, size, colour)
            for text, size, colour in texts
            # Measured at ten times the size, where hinting has little effect.
            for line in wrap(text, 10 * width, ImageFont.truetype(font, 10 * size), _MAX_LINES)
        ]
        self.image_rows = -(-len(row.pictures) // columns)
        image_width, image_height = row.pictures[0].size
        self.side = _SIDE * image_height / image_width
        self.image_row_height = self.side + _SMALL * _LEADING + 3
        text_height = sum(size * _LEADING for _, size, _ in self.lines)
        self.height = self.image_rows * self.image_row_height + text_height

    def draw(self, page: Figure, left: float, top: float) -> None:
        for k, picture in enumerate(self.row.pictures):
            x, y = left + k % self.columns * (_SIDE + _GAP), top + k // self.columns * self.image_row_height
            box = (x / _WIDTH, 1 - (y + self.side) / _HEIGHT, _SIDE / _WIDTH, self.side / _HEIGHT)
            axes = page.add_axes(box)
            # Enlarged here, since PDF viewers blur small images.
            axes.imshow(strip([picture], min_width=256), interpolation="none", aspect="auto")
            axes.set_axis_off()
            _write(page, x, y + self.side + 2, f"seed {self.row.seed + k}", _SMALL, "#555555")
        below = top + self.image_rows * self.image_row_height
        for line, size, colour in self.lines:
            _write(page, left, below, line, size, colour)
            below += size * _LEADING


def _write(page: Figure, x: float, y: float, text: str, size: float, colour: str) -> None:
    page.text(
        x / _WIDTH,
        1 - y / _HEIGHT,
        text,
        fontsize=size,
        color=colour,
        family="DejaVu Sans",
        ha="left",
        va="top",
        parse_math=False,  # dollar signs in a prompt are not math
    )
