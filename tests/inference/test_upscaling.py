"""Enlarging pictures of any size: tiles, transparency, noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_pl.errors import UserError
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.inference.upscaling import Upscaler
from imagen_pl.models.generators.upsampler import Upsampler
from imagen_pl.types import Growth
from tests.helpers.fakes import TinyText
from tests.helpers.networks import small_generator
from tests.helpers.upscalers import random_upscaler

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return random_upscaler()


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    bands = len(mode)
    values = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.fromarray(values[:, :, 0] if bands == 1 else values)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int16)


@pytest.mark.parametrize("tile", [16, 33, 50])
def test_tiles_leave_no_seams(upscaler: Upscaler, tile: int) -> None:
    small = picture(75, 90)
    whole = upscaler.upscale(small, "a red heart", tile=1000)
    calls: list[int] = []

    tiled = upscaler.upscale(small, "a red heart", tile=tile, on_tile=calls.append)

    assert whole.size == (300, 360)
    assert len(calls) == upscaler.tiles(small, tile) > 1
    assert np.abs(pixels(tiled) - pixels(whole)).max() <= 1  # other sizes may round the last bit otherwise


def test_without_the_surroundings_there_would_be_seams(upscaler: Upscaler) -> None:
    small = picture(64, 32)
    whole = pixels(upscaler.upscale(small))
    left = pixels(upscaler.upscale(small.crop((0, 0, 32, 32))))
    assert np.abs(whole[:, :128] - left).max() > 20


def test_noise_depends_on_the_seed_and_not_on_the_tiles(upscaler: Upscaler) -> None:
    small = picture(48, 48)
    noisy = pixels(upscaler.upscale(small, noise=0.2, seed=3))
    assert np.abs(noisy - pixels(upscaler.upscale(small, noise=0.2, seed=3, tile=16))).max() <= 1
    assert np.abs(noisy - pixels(upscaler.upscale(small, noise=0.2, seed=4))).max() > 5
    assert np.abs(noisy - pixels(upscaler.upscale(small))).max() > 5


def test_random_numbers_of_the_caller_are_left_alone(upscaler: Upscaler) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    upscaler.upscale(picture(8, 8), noise=0.1, seed=1)
    assert torch.equal(torch.rand(1), expected)


def test_transparency_is_kept(upscaler: Upscaler) -> None:
    layer = picture(20, 12, "RGBA")
    opaque = np.asarray(layer).copy()
    opaque[:, :, 3] = 255
    large = upscaler.upscale(Image.fromarray(opaque))
    assert (large.mode, large.size) == ("RGBA", (80, 48))
    colours = upscaler.upscale(Image.fromarray(opaque).convert("RGB"))
    solid = np.asarray(large)[:, :, 3] == 255
    assert solid.any()
    assert np.abs(pixels(large)[:, :, :3] - pixels(colours))[solid].max() <= 1
    assert upscaler.tiles(layer, 1000) == 2


def test_an_untrained_network_keeps_an_edge_of_transparency() -> None:
    plain = Upscaler(
        TextToImage(Upsampler(32, 4, [8], 1, text_dim=16, embedding_dim=8), TinyText(), Growth(32), {})
    )
    values = np.zeros((16, 16, 4), np.uint8)
    values[:, 8:] = (200, 30, 60, 255)
    large = np.asarray(plain.upscale(Image.fromarray(values)), np.int16)
    assert large[:, :24, 3].max() <= 8
    assert large[:, 44:, 3].min() >= 247
    inside = large[large[:, :, 3] > 64][:, :3]
    assert np.abs(inside - [200, 30, 60]).max() <= 30  # bicubic overshoots; a white seam would be 55 to 225


@pytest.mark.parametrize("mode", ["L", "P"])
def test_other_modes_are_read(upscaler: Upscaler, mode: str) -> None:
    grey = picture(10, 10, "L")
    assert upscaler.upscale(grey.convert(mode)).size == (40, 40)


def test_other_generators_are_refused() -> None:
    model = TextToImage(small_generator(), TinyText(), Growth(16), {})
    with pytest.raises(UserError, match="draws with StyleGenerator, which does not enlarge"):
        Upscaler(model)


@pytest.mark.parametrize(("settings", "message"), [({"noise": 2.0}, "noise 2.0"), ({"tile": 0}, "tile 0")])
def test_wrong_arguments_are_named(upscaler: Upscaler, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        upscaler.upscale(picture(8, 8), **settings)
