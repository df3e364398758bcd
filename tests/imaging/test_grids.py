import numpy as np
import torch
from PIL import Image

from imagen_pl.imaging.grids import font, labelled_grid, strip, to_pil, wrap


def test_to_pil_keeps_every_value() -> None:
    images = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(torch.uint8)
    for image, picture in zip(images, to_pil(images), strict=True):
        assert np.array_equal(np.asarray(picture), image.permute(1, 2, 0).numpy())


def test_small_pictures_are_enlarged_pixel_by_pixel() -> None:
    picture = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    row = np.asarray(strip([picture, picture], min_width=96))
    assert row.shape == (96, 2 * 96 + 2, 3)
    assert np.array_equal(row[::3, :96:3], np.asarray(picture))
    assert strip([picture], min_width=16).size == (32, 32)


def test_grid_places_pictures_row_by_row_above_their_labels() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    pictures = [Image.new("RGB", (100, 100), colour) for colour in colours]
    sheet = labelled_grid(pictures, ["red", "green", "blue"], columns=2)
    assert sheet.getpixel((50, 50)) == colours[0]
    assert sheet.getpixel((150, 50)) == colours[1]
    below = (sheet.height - 12) // 2 + 6
    assert sheet.getpixel((50, below + 50)) == colours[2]
    label = np.asarray(sheet.crop((6, 107, 106, 107 + 14)))
    assert label.min() < 120  # there are letters under the first picture


def test_long_labels_wrap_and_end_in_an_ellipsis() -> None:
    face = font(11)
    lines = wrap(
        "a very long caption that goes on and on and never ends, in fluent style, at night", 96, face
    )
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert all(face.getlength(line) <= 96 for line in lines)
    assert wrap("", 96, face) == []
    assert wrap("x" * 200, 96, face)[0].endswith("…")
