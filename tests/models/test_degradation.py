"""How an upsampler's small images are made: filters, blur, JPEG."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.models.degradation import Degradation, gaussian_blur, jpeg, shrink

pytestmark = pytest.mark.usefixtures("one_thread")


def smooth(count: int, height: int, width: int) -> Tensor:
    """Images of blurred noise, -1 to 1, in steps of 1 / 127.5 as real ones."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, height // 2, width // 2, generator=draw)
    levels = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear") * 255
    return levels.round() / 127.5 - 1


def test_area_is_the_mean_of_each_square() -> None:
    images = smooth(2, 16, 24)
    expected = images.reshape(2, 3, 4, 4, 6, 4).mean((3, 5))
    torch.testing.assert_close(shrink(images, 4), expected)


@pytest.mark.parametrize(
    ("how", "pillow"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]
)
def test_filters_equal_those_of_pillow(how: str, pillow: Image.Resampling) -> None:
    images = smooth(1, 32, 48)
    picture = Image.fromarray(((images[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    expected = torch.from_numpy(np.array(picture.resize((12, 8), pillow))).permute(2, 0, 1)
    found = (shrink(images, 4, how)[0] + 1) * 127.5  # type: ignore[arg-type]
    assert (found - expected).abs().max() <= 1


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
def test_jpeg_equals_that_of_pillow(quality: int) -> None:
    """Their integer arithmetic rounds a few values otherwise, which moves a few blocks by a step."""
    images = smooth(1, 24, 44)  # not a multiple of 8
    picture = Image.fromarray(((images[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    theirs = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float()

    ours = (jpeg(images, torch.tensor([quality]))[0] + 1) * 127.5

    lost = float(((images[0] + 1) * 127.5 - theirs).abs().mean())
    assert float((ours - theirs).abs().mean()) < min(1.0, 0.35 * lost)


def test_blur_keeps_the_mean_and_leaves_deviation_zero_alone() -> None:
    images = smooth(3, 32, 32)
    blurred = gaussian_blur(images, torch.tensor([0.0, 1.0, 3.0]))
    torch.testing.assert_close(blurred[0], images[0])
    spread = blurred.std((1, 2, 3)) / images.std((1, 2, 3))
    assert spread[0] > spread[1] > spread[2]
    torch.testing.assert_close(blurred.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=0.02, rtol=0)


def test_a_gaussian_of_one_point_is_the_gaussian() -> None:
    image = torch.zeros(1, 3, 33, 33)
    image[:, :, 16, 16] = 1
    blurred = gaussian_blur(image, torch.tensor([2.0]))[0, 0]
    places = torch.arange(33) - 16
    squared = places[:, None].square() + places[None].square()
    expected = torch.exp(-squared / 8) / (8 * torch.pi)
    torch.testing.assert_close(blurred, expected, atol=3e-4, rtol=0)


def test_evaluation_resizes_alone() -> None:
    images = smooth(4, 32, 32)
    harsh = Degradation(["bicubic", "area"], blur=2.0, jpeg=10)
    assert not torch.equal(harsh(images, 2), shrink(images, 2, "bicubic"))
    assert torch.equal(harsh.eval()(images, 2), shrink(images, 2, "bicubic"))


def test_degradation_is_the_same_in_a_run_in_bfloat16() -> None:
    images, harsh = smooth(4, 32, 32), Degradation(["bicubic", "area"], blur=2.0, jpeg=10)
    torch.manual_seed(0)
    expected = harsh(images, 2)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(harsh(images, 2), expected)


def test_each_image_has_its_own_filter() -> None:
    torch.manual_seed(0)
    images = smooth(1, 32, 32).expand(16, -1, -1, -1)
    small = Degradation(["area", "bicubic"])(images, 4)
    assert len({tuple(row.flatten().tolist()) for row in small}) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"filters": []}, "filters is empty"), ({"blur": -1.0}, "blur -1.0"), ({"jpeg": 100}, "jpeg 100")],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Degradation(**settings)
