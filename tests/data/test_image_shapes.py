"""Images that are not square, and with alpha: decoding against Pillow, batches, fingerprints, errors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from imagen_pl.data.batch_samplers import BatchPlan
from imagen_pl.data.dataset import RowImages
from imagen_pl.data.sources.base import Row
from imagen_pl.data.sources.folder import FolderSource
from imagen_pl.data.transforms import decode
from imagen_pl.errors import UserError
from imagen_pl.imaging.transparency import on_white, picture_on_white
from imagen_pl.types import width_of
from tests.helpers.image_files import Solid, encoded, module, noise, validation_batches, write_photos

LANCZOS = Image.Resampling.LANCZOS


def pixels(picture: Image.Image) -> torch.Tensor:
    found = torch.from_numpy(np.array(picture))
    return (found[:, :, None] if found.ndim == 2 else found).permute(2, 0, 1)


def badge(width: int = 40, height: int = 40) -> Image.Image:
    """Noise inside, transparent outside, with a smooth edge of alpha; red under the transparent pixels."""
    y, x = np.mgrid[:height, :width]
    radius = np.hypot((x - width / 2) / width, (y - height / 2) / height)
    alpha = (255 * np.clip((0.45 - radius) * 10, 0, 1)).astype(np.uint8)
    colour = np.array(noise(width, height))
    colour[alpha == 0] = (255, 0, 0)
    return Image.fromarray(np.dstack([colour, alpha]))


class Badges(Solid):
    """Pictures with alpha, image i of side `side + i`."""

    def image(self, row: Row) -> bytes:
        return encoded(badge(self.side + row.place, self.side))


# ---------------------------------------------------------------------- shapes


def test_a_crop_keeps_the_largest_centred_part_of_the_shape() -> None:
    picture = noise(80, 40)
    wide = decode(encoded(picture), 16, aspect_ratio=1.5)
    assert wide.shape == (3, 16, 24)
    assert torch.equal(wide, pixels(picture.resize((24, 16), LANCZOS, box=(10, 0, 70, 40), reducing_gap=3)))
    high = decode(encoded(picture), 16, aspect_ratio=0.75)
    assert high.shape == (3, 16, 12)
    assert torch.equal(high, pixels(picture.resize((12, 16), LANCZOS, box=(25, 0, 55, 40), reducing_gap=3)))


def test_padding_keeps_the_whole_image_in_the_middle() -> None:
    picture = noise(40, 40)
    padded = decode(encoded(picture), 16, "pad", (0, 255, 0), aspect_ratio=1.5)
    small = pixels(picture.resize((16, 16), LANCZOS, reducing_gap=3))
    assert torch.equal(padded[:, :, 4:20], small)
    for side in (padded[:, :, :4], padded[:, :, 20:]):
        assert side.amax((1, 2)).tolist() == [0, 255, 0]


def test_an_image_of_the_right_shape_loses_nothing_by_either_fit() -> None:
    data = encoded(noise(72, 48))
    assert torch.equal(decode(data, 16, aspect_ratio=1.5), decode(data, 16, "pad", aspect_ratio=1.5))


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_before_it_is_fitted(fit: str, orientation: int) -> None:
    # Smooth: a turned image is resized in the other order of its axes, which rounds noise differently.
    picture = noise(6, 2, seed=orientation).resize((48, 16), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(picture, exif=exif))))
    found = decode(encoded(picture, exif=exif), 12, fit, aspect_ratio=1.5)  # type: ignore[arg-type]
    wanted = decode(encoded(upright), 12, fit, aspect_ratio=1.5)  # type: ignore[arg-type]
    assert found.shape == (3, 12, 18)
    assert (found.int() - wanted.int()).abs().max() <= 1


def test_a_jpeg_is_decoded_large_enough_for_its_longer_side() -> None:
    data = encoded(Image.linear_gradient("L").convert("RGB").resize((960, 640)), "JPEG", quality=95)
    small = decode(data, 16, aspect_ratio=1.5)
    whole = pixels(Image.open(io.BytesIO(data)).resize((24, 16), LANCZOS))
    assert (small.int() - whole.int()).abs().max() <= 3


# ---------------------------------------------------------------------- alpha


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_alpha_is_a_fourth_channel_and_colours_are_those_on_white(fit: str) -> None:
    picture = badge(60, 40)
    found = decode(encoded(picture), 16, fit, alpha=True)  # type: ignore[arg-type]
    assert found.shape == (4, 16, 16)
    assert torch.equal(found[:3], decode(encoded(picture_on_white(picture)), 16, fit))  # type: ignore[arg-type]
    opacity = picture.getchannel("A")
    if fit == "crop":
        wanted = opacity.resize((16, 16), LANCZOS, box=(10, 0, 50, 40), reducing_gap=3)
    else:
        wanted = Image.new("L", (16, 16), 0)  # padded sides are transparent
        wanted.paste(opacity.resize((16, 11), LANCZOS, reducing_gap=3), (0, 2))
    assert torch.equal(found[3:], pixels(wanted))
    assert found[:3, 0, 0].tolist() == [255, 255, 255]  # not the red that stands there
    assert (on_white(found[None])[0].int() - found[:3].int()).abs().max() <= 8  # edges of LANCZOS


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "CMYK", "1"])
def test_a_picture_without_transparency_is_opaque(mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    data = encoded(Image.new(mode, (8, 8)), kind)
    found = decode(data, 8, alpha=True)
    assert found[3].min() == 255
    assert torch.equal(found[:3], decode(data, 8))


def test_transparent_colours_of_a_palette_and_of_grey_are_kept() -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 255, 0, 255, 0, 0])
    assert decode(encoded(palette, transparency=1), 8, alpha=True)[:, 0, 0].tolist() == [255, 255, 255, 0]
    grey = Image.new("LA", (8, 8), (0, 128))
    assert decode(encoded(grey), 8, alpha=True)[:, 0, 0].tolist() == [127, 127, 127, 128]


# ---------------------------------------------------------------------- batches


@pytest.mark.parametrize("cache_mb", [0.0, 1.0])
def test_batches_have_the_shape_and_alpha(cache_mb: float) -> None:
    data = module(Badges(12, side=16), aspect_ratio=1.5, alpha=True, val_fraction=0.25, cache_mb=cache_mb)
    for loader in (data.train_dataloader(), validation_batches(data)):
        batch = next(iter(loader))
        assert batch.images.shape[1:] == (4, 8, 12)
        assert batch.images[:, 3].min() == 0
    assert data.batch_to_watch(3).images.shape == (3, 4, 8, 12)
    assert next(iter(data.pairs.batches(4, 8))).images.shape == (4, 4, 8, 12)


def test_flips_mirror_alpha_too() -> None:
    data = module(Badges(8, side=16), alpha=True, horizontal_flip=True, val_fraction=0)
    rows = data._rows.train
    flipped, plain = (
        RowImages(data.source, rows, processing)  # type: ignore[arg-type]
        for processing in (data.train_processing, data.val_processing)
    )
    numbers = np.arange(8)
    plan = BatchPlan(numbers, numbers, 8)
    for mirrored, image in zip(flipped[plan].images, plain[plan].images, strict=True):
        assert torch.equal(mirrored, image) or torch.equal(mirrored, image.flip(-1))


def test_parts_of_larger_images_have_the_shape() -> None:
    data = module(Badges(8, side=24), aspect_ratio=1.5, crop_from=16, val_fraction=0)
    assert next(iter(data.train_dataloader())).images.shape == (4, 3, 8, 12)


def test_the_shorter_side_decides_which_images_are_too_small() -> None:
    data = module(Solid(8, side=3), aspect_ratio=0.5, val_fraction=0)  # 4 x 8 px
    assert len(data._rows.train) == 8
    with pytest.raises(UserError, match="8 smaller than 4 px"):
        _ = module(Solid(8, side=3), val_fraction=0)._rows


def test_fingerprints_change_with_shape_and_alpha_only(tmp_path: Path) -> None:
    source = FolderSource(str(write_photos(tmp_path / "photos", 8)))
    shapes: list[dict[str, object]] = [
        {}, {"aspect_ratio": 1.0, "alpha": False}, {"aspect_ratio": 1.5}, {"alpha": True}
    ]  # fmt: skip
    made = [module(source, val_fraction=0.25, **shape) for shape in shapes]
    for found in (
        [data.fingerprint for data in made],
        [data.training_fingerprint for data in made],
        [data.pairs.fingerprint(4, 8) for data in made],
    ):
        assert found[0] == found[1]
        assert len(set(found)) == 3


# ---------------------------------------------------------------------- errors


def test_a_width_that_is_not_whole_names_ratios_that_work() -> None:
    assert (width_of(4, 1.5), width_of(4, 0.75), width_of(32, 1.5)) == (6, 3, 48)
    with pytest.raises(UserError, match=r"aspect_ratio 1.3: .* of 4 px height .* as width: .* 1.25 or 1.5$"):
        width_of(4, 1.3)
    with pytest.raises(UserError, match=r"aspect_ratio 0.1: .* 0.25$"):
        width_of(4, 0.1)
    for wrong in (0.0, -1.5, float("inf"), float("nan")):
        with pytest.raises(UserError, match="aspect_ratio"):
            width_of(4, wrong)


def test_a_background_does_not_go_with_alpha() -> None:
    module(Solid(8), alpha=True, background="#ffffff")
    with pytest.raises(UserError, match=r"data.background black has no effect with data.alpha"):
        module(Solid(8), alpha=True, background="black")
