"""Large images as smaller files: `imagen-pl data shards --shrink`."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from imagen_pl.data.resize import shrink
from imagen_pl.data.shards import write_shards
from tests.helpers.image_files import Solid, encoded, noise


def image_of(shard: Path, ending: str) -> Image.Image:
    with tarfile.open(shard) as tar:
        member = next(m for m in tar if m.name.endswith(f".{ending}"))
        image = Image.open(io.BytesIO(tar.extractfile(member).read()))  # type: ignore[union-attr]
        image.load()
        return image


def shrunk(tmp_path: Path, name: str, data: bytes, px: int = 16) -> Image.Image:
    """A single image, through a shard."""
    source = Solid(2)
    source.image = lambda row: data  # type: ignore[method-assign]
    write_shards(source, tmp_path / name, largest_side=px)
    return image_of(tmp_path / name / "train-000000.tar", name)


def test_shrinking_keeps_kind_shape_profile_and_transparency(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    jpeg = shrunk(tmp_path, "jpg", encoded(Image.new("RGB", (64, 40), "red"), "JPEG", icc_profile=profile))
    assert (jpeg.format, jpeg.size, jpeg.info["icc_profile"]) == ("JPEG", (26, 16), profile)
    assert np.abs(np.array(jpeg, int) - (255, 0, 0)).max() < 4
    webp = shrunk(tmp_path, "webp", encoded(Image.new("RGBA", (40, 64), (0, 0, 0, 0)), "WEBP"))
    assert (webp.format, webp.size, webp.mode) == ("WEBP", (16, 26), "RGBA")
    deep = shrunk(tmp_path, "png", encoded(Image.fromarray(np.full((64, 64), 32896, np.uint16))))
    assert (deep.format, deep.size) == ("PNG", (16, 16))
    assert np.array(deep.convert("RGB"))[3, 3].tolist() == [128] * 3


def test_shrinking_sets_turned_photographs_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    picture = Image.new("RGB", (64, 32), "red")
    picture.paste("blue", (32, 0, 64, 32))
    upright = shrunk(tmp_path, "jpg", encoded(picture, "JPEG", exif=exif))
    assert upright.size == (16, 32)
    assert not upright.getexif()
    assert upright.getpixel((8, 4))[0] > 200  # type: ignore[index]
    assert upright.getpixel((8, 28))[2] > 200  # type: ignore[index]


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK", "I", "F"])
def test_every_mode_shrinks(mode: str, tmp_path: Path) -> None:
    kind = {"CMYK": "JPEG", "F": "TIFF", "I": "TIFF"}.get(mode, "PNG")
    image = encoded(noise(40, 40).convert("L").convert(mode), kind)
    assert shrunk(tmp_path, "jpg" if kind == "JPEG" else "png", image).size == (16, 16)


def test_small_images_keep_their_bytes() -> None:
    for width, height in ((16, 16), (16, 99)):
        image = encoded(noise(width, height), "JPEG")
        assert shrink(image, 16) is image
