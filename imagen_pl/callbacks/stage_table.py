"""A table of samples of the same captions at the end of every growth stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from imagen_pl.imaging.grids import labelled_grid
from imagen_pl.storage.atomic_files import atomic_write

_MIN_WIDTH = 96  # px, of a picture in the table


class StageTable:
    """Saves the pictures of each stage as files, so that a resumed run continues the same table.

    Args:
        folder: where `table.png` is written, and a folder for each stage, for example `2-64px/`, with its
            pictures in the order of the captions.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record(self, index: int, resolution: int, pictures: Sequence[Image.Image]) -> None:
        """Save the pictures at the end of a stage; earlier ones of the same stage are replaced.

        Args:
            index: of the stage, from 0.
            resolution: of the stage, px.
            pictures: one for each caption.
        """
        stage = self.folder / f"{index + 1}-{resolution}px"
        for i, picture in enumerate(pictures):
            with atomic_write(stage / f"{i:03d}.png") as file:
                picture.save(file, "PNG")

    def columns(self, count: int) -> dict[str, list[Image.Image]]:
        """Pictures by stage, for example "2: 64 px"; stages with another number of captions are left out.

        Args:
            count: number of captions.
        """
        found = {}
        stages = [entry for entry in self.folder.iterdir() if entry.is_dir()]
        for stage in sorted(stages, key=lambda stage: int(stage.name.split("-")[0])):
            number, _, size = stage.name.partition("-")
            files = sorted(stage.glob("*.png"))
            if len(files) == count:
                found[f"{number}: {size.removesuffix('px')} px"] = [_read(file) for file in files]
        return found

    def sheet(self, captions: Sequence[str], columns: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
        """The table as a picture, one row per caption; also saved as `table.png`."""
        size = max(picture.width for pictures in columns.values() for picture in pictures)
        width = max(size, _MIN_WIDTH)
        cells, labels = [], []
        for row, caption in enumerate(captions):
            for name, pictures in columns.items():
                cells.append(_enlarged(pictures[row], width))
                labels.append(f"{caption} ({name})")
        sheet = labelled_grid(cells, labels, len(columns))
        with atomic_write(self.folder / "table.png") as file:
            sheet.save(file, "PNG")
        return sheet


def _enlarged(picture: Image.Image, width: int) -> Image.Image:
    """The picture at that width, by nearest-neighbour interpolation."""
    height = round(picture.height * width / picture.width)
    return picture.resize((width, height), Image.Resampling.NEAREST)


def _read(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")
