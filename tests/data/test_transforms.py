"""Decoding of every kind of file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms

from imagen_pl.data import transforms
from imagen_pl.data.transforms import (
    UNREADABLE,
    as_shown,
    decode,
    parse_background,
    quiet_pillow,
    read_size,
)
from imagen_pl.errors import UserError
from tests.helpers.image_files import encoded, noise, truncated_jpeg


def levels(image: torch.Tensor) -> list[int]:
    """Of an image of one colour, that colour."""
    flat = image.reshape(3, -1)
    assert (flat == flat[:, :1]).all()
    return flat[:, 0].tolist()


def test_crop_keeps_the_centre_square() -> None:
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    red, green, blue = decode(encoded(wide), 8)[:, :, 1:-1]
    assert blue.min() > 250
    assert max(red.max(), green.max()) < 5


def test_pad_keeps_the_whole_image_on_the_background() -> None:
    padded = decode(encoded(Image.new("RGB", (32, 16), "red")), 8, "pad", parse_background("lime"))
    assert padded.shape == (3, 8, 8)
    assert levels(padded[:, 2:6]) == [255, 0, 0]
    assert levels(padded[:, :2]) == levels(padded[:, 6:]) == [0, 255, 0]


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = decode(encoded(Image.fromarray(stripes)), 8)
    assert (small.float() - 127.5).abs().max() < 8


def test_large_jpeg_decoded_small_matches_the_full_decode() -> None:
    picture = noise(8, 8, seed=3).resize((512, 512), Image.Resampling.BICUBIC)
    data = encoded(picture, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as opened:
        full = np.array(opened.convert("RGB").resize((16, 16), Image.Resampling.LANCZOS), np.int16)
    small = decode(data, 16).permute(1, 2, 0).numpy().astype(np.int16)
    assert np.abs(small - full).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_exif_rotation_is_applied(orientation: int, fit: str) -> None:
    upright = Image.new("RGB", (16, 16), "white")
    upright.paste("red", (0, 0, 8, 8))
    upright.paste("blue", (8, 0, 16, 8))
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(upright if stored is None else upright.transpose(stored), exif=exif)
    assert torch.equal(decode(data, 16, fit), decode(encoded(upright), 16))  # type: ignore[arg-type]


def test_broken_exif_is_ignored() -> None:
    data = encoded(Image.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\1\2\3")
    with quiet_pillow():
        assert decode(data, 8).shape == (3, 8, 8)


def test_transparency_shows_the_background() -> None:
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert levels(decode(encoded(half), 8)) == [255, 127, 127]
    assert levels(decode(encoded(clear), 8)) == [255, 255, 255]
    assert levels(decode(encoded(clear), 8, background=(0, 0, 255))) == [0, 0, 255]
    assert levels(decode(encoded(Image.new("LA", (8, 8), (0, 0))), 8)) == [255, 255, 255]


def test_colour_of_transparent_pixels_does_not_bleed() -> None:
    icon = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    icon.paste((255, 255, 255, 255), (16, 16, 48, 48))
    assert levels(decode(encoded(icon), 8)) == [255, 255, 255]


def test_transparent_palette_colour_shows_the_background() -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert levels(decode(encoded(palette), 8)) == [0, 255, 0]
    assert levels(decode(encoded(palette, transparency=1), 8, background=(9, 8, 7))) == [9, 8, 7]


def test_cmyk_jpeg_is_converted_to_rgb() -> None:
    red, green, blue = levels(decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), 8))
    assert red > 230
    assert max(green, blue) < 50


def test_16_bit_png_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
    got = decode(encoded(Image.fromarray(ramp)), 64)[0, 0].tolist()
    assert got == (ramp[0] / 257).round().astype(int).tolist()


def test_float_tiff_keeps_its_range() -> None:
    grey = Image.fromarray(np.full((8, 8), 0.5, np.float32))
    assert levels(decode(encoded(grey, "TIFF"), 8)) == [128, 128, 128]


def test_grey_and_one_bit_images_are_converted_to_rgb() -> None:
    assert levels(decode(encoded(Image.new("L", (8, 8), 77)), 8)) == [77, 77, 77]
    assert levels(decode(encoded(Image.new("1", (8, 8), 1)), 8)) == [255, 255, 255]


def test_an_image_of_one_pixel_is_resized() -> None:
    assert levels(decode(encoded(Image.new("RGB", (1, 1), (1, 2, 3))), 8)) == [1, 2, 3]
    assert levels(decode(encoded(Image.new("RGB", (1, 1), (1, 2, 3))), 8, "pad")) == [1, 2, 3]


def test_very_thin_image_is_padded() -> None:
    assert decode(encoded(Image.new("RGB", (300, 1), "red")), 8, "pad").shape == (3, 8, 8)


def test_srgb_profile_changes_nothing_and_a_broken_one_is_ignored() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = decode(encoded(noise()), 32)
    assert torch.equal(decode(encoded(noise(), icc_profile=srgb), 32), plain)
    assert torch.equal(decode(encoded(noise(), icc_profile=b"not a profile"), 32), plain)


def test_whole_pictures_are_srgb_turned_and_keep_their_transparency(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = as_shown(encoded(Image.new("RGB", (8, 4), "red"), exif=exif))
    assert (turned.mode, turned.size) == ("RGB", (4, 8))
    ramp = Image.fromarray(np.full((4, 4), 40000, np.uint16))
    assert as_shown(encoded(ramp)).getpixel((0, 0)) == (156, 156, 156)

    # A profile that swaps colours stands for one of another colour space.
    monkeypatch.setattr(transforms, "_to_srgb", lambda picture, _: Image.merge("RGB", picture.split()[::-1]))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    clear = as_shown(encoded(Image.new("RGBA", (4, 4), (200, 10, 20, 70)), icc_profile=srgb))
    assert clear.getpixel((0, 0)) == (20, 10, 200, 70)
    assert as_shown(encoded(Image.new("CMYK", (4, 4)), "JPEG")).mode == "RGB"


def test_unreadable_files_raise_what_callers_catch(tmp_path: Path) -> None:
    for data in (truncated_jpeg(), b"", b"no image at all", encoded(noise())[:100]):
        with pytest.raises(UNREADABLE):
            decode(data, 8)
    with pytest.raises(UNREADABLE):
        decode(tmp_path / "missing.png", 8)
    with pytest.raises(UNREADABLE):
        read_size(b"no image at all")


def test_webp_is_opened_without_trying_other_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow takes five times as long to find out that bytes are WebP as to open them."""
    picture = noise(16, 16)
    webp = encoded(picture, "WEBP", lossless=True)
    Image.init()
    tried = []
    for name, (factory, accept) in list(Image.OPEN.items()):

        def note(*args: object, name: str = name, factory: Any = factory) -> Any:
            tried.append(name)
            return factory(*args)

        monkeypatch.setitem(Image.OPEN, name, (note, accept))

    assert torch.equal(decode(webp, 16), decode(encoded(picture, "BMP"), 16))

    assert tried == ["WEBP", "BMP"]
    with pytest.raises(UNREADABLE):
        decode(webp[:24], 16)


def test_invalid_background_raises() -> None:
    with pytest.raises(
        UserError, match=r"background 'whitish' is no colour: use a name as white, or #rrggbb"
    ):
        parse_background("whitish")
    assert parse_background("#102030") == (16, 32, 48)
