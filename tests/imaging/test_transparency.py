"""Tensors with alpha: colours as on white, and what a file stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imagen_pl.imaging.grids import labelled_grid, save_picture, size_text, to_pil
from imagen_pl.imaging.transparency import on_white, picture_on_white, straight


def rgba(side: int = 16, seed: int = 0) -> Image.Image:
    """Random colours and alpha, all values of both."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 4), dtype=np.uint8)
    pixels[0, :4, 3] = (0, 1, 254, 255)
    return Image.fromarray(pixels)


def tensor_of(picture: Image.Image) -> torch.Tensor:
    """What `decode` makes of it: the colours on white, by Pillow, and alpha."""
    colours = np.asarray(picture_on_white(picture))
    pixels = np.dstack([colours, np.asarray(picture.getchannel("A"))])
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def test_a_picture_survives_the_way_to_a_tensor_and_back_as_it_looks_on_white() -> None:
    picture = rgba()
    (back,) = to_pil(tensor_of(picture))
    assert back.mode == "RGBA"
    assert np.array_equal(np.asarray(back)[..., 3], np.asarray(picture)[..., 3])
    seen, again = (np.asarray(picture_on_white(each), np.int16) for each in (picture, back))
    assert np.abs(seen - again).max() <= 1
    opaque = np.asarray(picture)[..., 3] == 255
    assert np.array_equal(np.asarray(back)[opaque], np.asarray(picture)[opaque])


def test_fully_transparent_pixels_are_white_in_the_file() -> None:
    images = torch.zeros(1, 4, 2, 2, dtype=torch.uint8)
    assert straight(images)[0, :, 0, 0].tolist() == [255, 255, 255, 0]


def test_half_transparent_red_is_pink_on_white_and_red_in_the_file() -> None:
    images = torch.tensor([255, 127, 127, 128], dtype=torch.uint8).view(1, 4, 1, 1)
    assert straight(images).flatten().tolist() == [255, 0, 0, 128]
    assert on_white(images).flatten().tolist() == [255, 127, 127]


def test_pixels_darker_than_their_alpha_allows_are_seen_as_the_file_shows_them() -> None:
    images = torch.tensor([0, 60, 200, 100], dtype=torch.uint8).view(1, 4, 1, 1)
    seen = on_white(images)
    assert seen.flatten().tolist() == [155, 155, 200]
    (picture,) = to_pil(images)
    shown = np.asarray(picture_on_white(picture), np.int16).flatten()
    assert np.abs(shown - seen.flatten().numpy()).max() <= 1
    floats = on_white(images.float() / 127.5 - 1)
    assert torch.allclose((floats + 1) * 127.5, seen.float(), atol=1e-4)


def test_images_without_alpha_are_left_alone() -> None:
    images = torch.rand(2, 3, 4, 4)
    assert on_white(images) is images
    assert to_pil((images * 255).byte())[0].mode == "RGB"


def test_a_grid_is_on_white_unless_asked_for_transparency() -> None:
    clear = Image.new("RGBA", (96, 64), (255, 0, 0, 0))
    shown, kept = (labelled_grid([clear], [""], 1, transparent=wanted) for wanted in (False, True))
    assert (shown.mode, kept.mode) == ("RGB", "RGBA")
    assert shown.getpixel((20, 20)) == (255, 255, 255)
    assert kept.getpixel((20, 20)) == (255, 0, 0, 0)
    assert shown.width - shown.height == 32


def test_a_jpeg_file_gets_a_transparent_picture_on_white(tmp_path: Path) -> None:
    save_picture(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), tmp_path / "clear.jpg", {"prompt": "nothing"})
    with Image.open(tmp_path / "clear.jpg") as written:
        assert written.getpixel((4, 4)) == (255, 255, 255)


def test_size_text_names_both_sides_of_what_is_no_square() -> None:
    assert [size_text((32, 32)), size_text((48, 32))] == ["32 px", "48 x 32 px"]
