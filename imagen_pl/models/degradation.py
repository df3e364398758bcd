"""How large images become the small ones from which an upsampler learns.

Axes: b batch, h w pixels, k kernel.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError

Filter = Literal["area", "bilinear", "bicubic"]
Images = Float[Tensor, "b 3 h w"]
Small = Float[Tensor, "b 3 _h _w"]

# JPEG's quantisation tables for quality 50 (ITU-T T.81, annex K.1).
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *((99,) * 8,) * 4,
)  # fmt: skip
# From RGB to YCbCr, without the offset of 128 (JFIF, ITU-T T.871).
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


class Degradation(nn.Module):
    """Shrinks images; if wanted, blurs them before and compresses them after.

    A single pass of Real-ESRGAN's degradations (arXiv:2107.10833, section 3.1). Each image gets its own
    random filter, blur and quality. In evaluation mode the first filter is used, and nothing else is done.

    Args:
        filters: filters of the resize, one of which each image gets.
        blur: largest standard deviation of the Gaussian blur, px of the small image; 0 does not blur.
        jpeg: lowest JPEG quality, 1 to 99; each image has one from it to 100. None does not compress.
    """

    def __init__(
        self,
        filters: list[Filter] | None = None,
        blur: float = 0.0,
        jpeg: int | None = None,
    ) -> None:
        super().__init__()
        self.filters: list[Filter] = ["area", "bicubic"] if filters is None else filters
        if not self.filters:
            raise UserError("Degradation.filters is empty: name area, bilinear or bicubic")
        if blur < 0:
            raise UserError(f"Degradation.blur {blur} must be 0 or more")
        if jpeg is not None and not 1 <= jpeg < 100:
            raise UserError(f"Degradation.jpeg {jpeg} must be 1 to 99")
        self.blur, self.jpeg = blur, jpeg

    def forward(self, images: Images, factor: int) -> Small:
        """Images of 1 / `factor` of the side, in the range of the given ones, -1 to 1."""
        # In bfloat16, rounding would be the larger part of what the network learns to undo.
        with torch.autocast(images.device.type, enabled=False):
            return self._degraded(images.float(), factor)

    def _degraded(self, images: Images, factor: int) -> Small:
        if not self.training:
            return shrink(images, factor, self.filters[0])
        if self.blur:
            images = gaussian_blur(images, self.blur * factor * torch.rand(len(images), device=images.device))
        which = torch.randint(len(self.filters), (len(images),)).tolist()
        rows = (shrink(image[None], factor, self.filters[i]) for image, i in zip(images, which, strict=True))
        small = torch.cat(list(rows)).clamp(-1, 1)
        if self.jpeg is not None:
            quality = torch.randint(self.jpeg, 101, (len(images),), device=images.device)
            small = jpeg(small, quality)
        return small


def shrink(images: Images, factor: int, how: Filter = "area") -> Small:
    """Images of 1 / `factor` of the side, antialiased; "area" is the mean of each square."""
    if how == "area":
        return F.avg_pool2d(images, factor)
    size = [side // factor for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode=how, align_corners=False, antialias=True)


def gaussian_blur(
    images: Float[Tensor, "b c h w"], deviation: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Each image blurred with its own standard deviation, px; 0 leaves it unchanged."""
    b, c, h, w = images.shape
    reach = max(1, math.ceil(3 * float(deviation.max())))
    reach = min(reach, min(h, w) - 1)  # reflection needs more pixels than that
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / deviation.clamp_min(1e-3)[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)[:, None, :]
    flat = F.pad(images, [reach] * 4, mode="reflect").reshape(1, c * b, h + 2 * reach, w + 2 * reach)
    flat = F.conv2d(flat, kernel[:, :, :, None], groups=c * b)
    return F.conv2d(flat, kernel[:, :, None, :], groups=c * b).reshape(b, c, h, w)


def jpeg(images: Images, quality: Float[Tensor, " b"] | Tensor) -> Images:
    """Images after JPEG compression and decompression without subsampling of colours.

    Args:
        images: -1 to 1.
        quality: of each, 1 to 100, with the scale of the quantisation tables of libjpeg.
    """
    h, w = images.shape[-2:]
    padded = F.pad(images, [0, -w % 8, 0, -h % 8], mode="replicate")
    levels = ((padded + 1) * 127.5).round()
    rgb_to_ycc = images.new_tensor(_TO_YCBCR)
    ycc = torch.einsum("oc,bchw->bohw", rgb_to_ycc, levels).round()
    ycc = ycc - ycc.new_tensor([128.0, 0.0, 0.0])[:, None, None]
    dct = _dct_matrix().to(images)
    blocks = ycc.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))  # (b, 3, rows, 8, columns, 8)
    frequencies = torch.einsum("ui,bcrisj,vj->bcrusv", dct, blocks, dct)
    quality = quality.to(images)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    tables = images.new_tensor([_LUMA, _CHROMA, _CHROMA])
    steps = ((tables * scale[:, None, None, None] + 50) / 100).floor().clamp(1, 255)[:, :, None, :, None, :]
    kept = (frequencies / steps).round() * steps
    back = torch.einsum("ui,bcrusv,vj->bcrisj", dct, kept, dct).flatten(4, 5).flatten(2, 3)
    back = back + back.new_tensor([128.0, 0.0, 0.0])[:, None, None]
    rgb = torch.einsum("oc,bchw->bohw", torch.linalg.inv(rgb_to_ycc), back.round()).round().clamp(0, 255)
    return rgb[:, :, :h, :w] / 127.5 - 1


def _dct_matrix() -> Float[Tensor, "8 8"]:
    """The orthonormal cosine transform of eight values."""
    frequency, place = torch.arange(8.0)[:, None], torch.arange(8.0)[None]
    matrix = 0.5 * torch.cos((2 * place + 1) * frequency * math.pi / 16)
    matrix[0] /= math.sqrt(2)
    return matrix
