"""An encoder from pictures to the styles with which one generator draws them.

As in pSp (arXiv:2008.00951): one style for each resolution, as a difference from a mean style.

Axes: b batch, n resolutions, h w pixels.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.models.layers.initialisation import SLOPE, conv, linear
from imagen_pl.models.layers.resampling import downsample
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.types import width_of


class StyleEncoder(nn.Module):
    """Predicts the styles of pictures, given the mean style of their captions.

    Args:
        resolution: height of the pictures, px; a power of two.
        styles: number of styles, that is of the generator's resolutions.
        style_dim: size of a style.
        width: feature maps at the full resolution; up to eight times as many at lower ones.
        aspect_ratio: width of the pictures / their height.
        image_channels: of the pictures: 3 for RGB, 4 for RGBA.
    """

    def __init__(
        self,
        resolution: int,
        styles: int,
        style_dim: int,
        width: int = 32,
        aspect_ratio: float = 1.0,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        self.resolution, self.styles, self.style_dim, self.width = resolution, styles, style_dim, width
        self.aspect_ratio, self.image_channels = aspect_ratio, image_channels
        self.first = conv(image_channels, width, 3)
        self.down = nn.ModuleList()
        side, maps = resolution, width
        while side > 4:
            more = min(2 * maps, 8 * width)
            self.down.append(EncoderBlock(maps, more))
            side, maps = side // 2, more
        self.hidden = linear(maps * side * width_of(side, aspect_ratio), 512)
        self.out = linear(512, styles * style_dim, zero=True)

    def forward(
        self, images: Float[Tensor, "b _c h w"], mean_style: Float[Tensor, "b style"]
    ) -> Float[Tensor, "b n style"]:
        """Styles of mean 0 and variance 1; the images are -1 to 1."""
        x = F.leaky_relu(self.first(images), SLOPE)
        for block in self.down:
            x = block(x)
        move = self.out(F.leaky_relu(self.hidden(x.flatten(1)), SLOPE)).float()
        styles = mean_style[:, None] + move.unflatten(1, (self.styles, self.style_dim))
        return F.layer_norm(styles, (self.style_dim,))


class EncoderBlock(nn.Module):
    """A residual block that halves the side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = conv(in_channels, out_channels, 3)
        self.second = conv(out_channels, out_channels, 3, zero=True)
        self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b i r r"]) -> Float[Tensor, "b o s s"]:
        x = downsample(x)
        return self.skip(x) + self.second(F.leaky_relu(self.first(F.leaky_relu(x, SLOPE)), SLOPE))


def fingerprint(generator: StyleGenerator) -> str:
    """Changes with the generator's weights: an encoder fits one generator alone."""
    digest = hashlib.sha256()
    for weight in generator.state_dict().values():
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def save_encoder(encoder: StyleEncoder, file: Path, generator: StyleGenerator) -> None:
    """Write the weights, with their sizes and the generator's fingerprint, in half precision."""
    from safetensors.torch import save

    sizes = {name: getattr(encoder, name) for name in inspect.signature(StyleEncoder).parameters}
    about = {"sizes": json.dumps(sizes), "generator": fingerprint(generator), "format": "pt"}
    weights = {name: each.half().cpu().contiguous() for name, each in encoder.state_dict().items()}
    with atomic_write(file) as opened:
        opened.write(save(weights, about))


def is_encoder(file: Path) -> bool:
    """Whether a file is one that `save_encoder` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return "sizes" in (opened.metadata() or {})
    except SafetensorError:
        return False


def load_encoder(file: Path, generator: StyleGenerator, resolution: int) -> StyleEncoder:
    """The encoder of a generator.

    Raises:
        UserError: the file is missing or damaged, or was made for another generator or size.
    """
    from safetensors import SafetensorError, safe_open

    make = "`imagen-pl fit-encoder MODEL` makes one"
    if not file.is_file():
        raise UserError(f"encoder {file}: there is no such file; {make}")
    try:
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata() or {}
            weights = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
        encoder = StyleEncoder(**json.loads(about["sizes"]))
        encoder.load_state_dict(weights)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"encoder {file} cannot be read: it is damaged, or no encoder; {make}") from error
    if about.get("generator") != fingerprint(generator) or encoder.resolution != resolution:
        raise UserError(f"encoder {file} was made for another model, or another size of pictures; {make}")
    return encoder.eval().requires_grad_(False)
