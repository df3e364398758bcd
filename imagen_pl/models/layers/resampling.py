"""Doubling and halving the side of feature maps and images."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def upsample(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
    """Bilinear, which avoids checkerboard artifacts (distill.pub/2016/deconv-checkerboard)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def downsample(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h//2 w//2"]:
    """Mean of each 2x2 square."""
    return F.avg_pool2d(x, 2)


def fade_in(images: Float[Tensor, "b c h w"], fade: float) -> Float[Tensor, "b c h w"]:
    """Real images with the detail of a stage that fades in (arXiv:1710.10196, section 2).

    Blends from the images at half the resolution (fade 0) to the images themselves (fade 1).
    """
    if fade >= 1:
        return images
    coarse = upsample(downsample(images))
    return coarse.lerp(images, fade)
