"""A data source: discs, drawn on request. Replace it with one that reads your pictures."""

from __future__ import annotations

import io

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row, Source
from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "yellow", "black", "purple")


class Discs(Source):
    """Discs of six colours and several sizes, drawn on request.

    Args:
        path: name of the data set in messages.
        sizes: number of sizes; every second one is held out.
    """

    def __init__(self, path: str = "discs", sizes: int = 10) -> None:
        self.path, self.sizes = path, sizes

    def load(self, skipped: SkippedImages) -> dict[str, list[Row]]:
        """Rows by split."""
        rows = [
            Row(f"{colour}-{k}", (f"a {colour} disc",), (colour, k))
            for colour in COLOURS
            for k in range(self.sizes)
        ]
        return {"train": rows[::2], "validation": rows[1::2]}

    def image(self, row: Row) -> bytes:
        """The encoded image of a row."""
        colour, k = row.place
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).circle((32, 32), 10 + 20 * k / self.sizes, fill=colour)
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()
