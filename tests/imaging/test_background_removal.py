"""Background removal, on synthetic pictures whose colour and opacity are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy import ndarray
from PIL import Image

from imagen_pl.imaging.background_removal import matte, remove_background

SIDE, FINE = 48, 16


def disc(x: float, y: float, radius: float) -> ndarray:
    """How much of each pixel a disc covers, (h, w) of 0 to 1."""
    at = (np.arange(SIDE * FINE) + 0.5) / FINE
    inside = (at[None] - x) ** 2 + (at[:, None] - y) ** 2 <= radius**2
    return inside.reshape(SIDE, FINE, SIDE, FINE).mean((1, 3))


def laid(colour: tuple[int, int, int] | ndarray, opacity: ndarray, below: ndarray | float = 255.0) -> ndarray:
    return np.asarray(colour, float) * opacity[..., None] + below * (1 - opacity[..., None])


def pixels(picture: ndarray) -> ndarray:
    return np.round(picture).clip(0, 255).astype(np.uint8)


def over(cut: ndarray, background: float) -> ndarray:
    return laid(cut[..., :3], cut[..., 3] / 255, background)


@pytest.mark.parametrize(
    "colour", [(220, 40, 60), (255, 204, 50), (0, 0, 0), (225, 232, 240), (30, 90, 200)], ids=str
)
def test_an_anti_aliased_disc_is_recovered(colour: tuple[int, int, int]) -> None:
    covered = disc(24, 23.3, 15.2)
    picture = pixels(laid(colour, covered))
    cut = matte(picture)
    assert np.abs(cut[..., 3] / 255 - covered).max() < 0.08
    assert np.abs(over(cut, 255) - picture).max() <= 1
    # On black a white fringe would be visible: half-covered white pixels are 128 too bright.
    assert np.abs(over(cut, 0) - laid(colour, covered, 0)).max() < 20
    shows = cut[..., 3] > 25
    assert np.abs(cut[..., :3].astype(int) - colour)[shows].max() < 20


def test_noisy_white_is_background_and_edges_stay_soft() -> None:
    covered = disc(24, 24, 15)
    noise = np.random.default_rng(0).normal(0, 6, (SIDE, SIDE, 3))
    cut = matte(pixels(laid((220, 40, 60), covered) + noise))
    assert cut[..., 3][covered == 0].max() < 40
    assert cut[..., 3][covered == 1].min() > 225
    assert np.abs(cut[..., 3] / 255 - covered).max() < 0.15


def test_enclosed_white_is_not_background() -> None:
    face, eye = disc(24, 24, 18), disc(24, 24, 7)
    picture = pixels(laid(np.full((SIDE, SIDE, 3), 255.0), eye, laid((255, 204, 50), face)))
    cut = matte(picture)
    assert cut[24, 24].tolist() == [255, 255, 255, 255]
    assert np.abs(cut[..., 3] / 255 - face).max() < 0.08


def test_pale_rims_and_dark_spots_keep_their_edge() -> None:
    face, spot, inner = disc(24, 24, 18), disc(24, 40, 2), disc(24, 24, 16.5)
    yellow = laid((255, 204, 50), face)
    spotted = matte(pixels(laid((90, 40, 20), spot, yellow)))
    assert np.abs(spotted[..., 3] / 255 - np.maximum(face, spot)).max() < 0.1
    outlined = matte(pixels(laid((255, 204, 50), inner, laid((0, 0, 0), face))))
    assert np.abs(outlined[..., 3] / 255 - face).max() < 0.15


def test_thin_lines_are_kept_and_faint_specks_removed() -> None:
    picture = np.full((16, 16, 3), 255, np.uint8)
    picture[8, 3:13] = (10, 20, 30)
    picture[2, 2] = 240
    opacity = matte(picture)[..., 3]
    assert (opacity[8, 3:13] == 255).all()
    assert opacity.astype(bool).sum() == 10


def test_transparent_pixels_have_the_subject_s_colour() -> None:
    picture = np.full((16, 16, 3), 255, np.uint8)
    picture[4:12, 4:12] = (30, 90, 200)
    cut = matte(picture)
    assert cut[0, 0].tolist() == [30, 90, 200, 0]


def test_images_without_background_are_opaque_and_white_ones_transparent() -> None:
    assert (matte(np.full((8, 8, 3), 90, np.uint8))[..., 3] == 255).all()
    assert (matte(np.full((8, 8, 3), 255, np.uint8))[..., 3] == 0).all()
    assert remove_background(Image.new("L", (8, 6), 90)).size == (8, 6)
