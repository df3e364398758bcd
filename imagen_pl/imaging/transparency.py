"""Pictures with transparency (RGBA), as tensors and as files.

A file's colours are independent of its alpha, and under fully transparent pixels any colour may stand: a
network would learn what nobody sees, and resizing would let it bleed into the edges. So a tensor of four
channels holds the picture as it looks on white, and its alpha:

    seen = alpha * colour + (1 - alpha) * white        channels: red, green, blue of seen; alpha

Fully transparent pixels are white. Resizing and fading are linear, so they commute with this. And the first
three channels are an ordinary picture, which networks that know RGB can read: `on_white` gives it.

Axes: b batch, c channels, h w pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # networks need no Pillow, and torch takes seconds to import
    from jaxtyping import UInt8
    from PIL import Image
    from torch import Tensor


def on_white(images: Tensor) -> Tensor:
    """Images as they look on white, 3 channels; images without alpha are returned as they are.

    Args:
        images: (b, 3 or 4, h, w), 0 to 255 if they are bytes, else -1 to 1.
    """
    if images.shape[1] != 4:
        return images
    seen, alpha = images[:, :3], images[:, 3:]
    # Where a generated pixel is darker than its alpha allows, a file's black is the nearest colour.
    return seen.maximum(-alpha if images.dtype.is_floating_point else 255 - alpha)


def straight(images: UInt8[Tensor, "b 4 h w"]) -> UInt8[Tensor, "b 4 h w"]:
    """As files store them, with straight alpha: colour = white - (white - seen) / alpha.

    Where alpha is 0, the colour is white.
    """
    seen, alpha = images[:, :3].float(), images[:, 3:].float()
    colour = 255 - (255 - seen) * 255 / alpha.clamp_min(1)
    result = images.clone()
    result[:, :3] = colour.where(alpha > 0, 255).round().clamp(0, 255).byte()
    return result


def picture_on_white(picture: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, with white behind transparent pixels."""
    from PIL import Image

    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")
