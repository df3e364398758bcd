"""Enlarges pictures of any size with a trained Upsampler, in tiles if they are large.

Axes: h w pixels of the small picture, f factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import to_pil, to_uint8
from imagen_pl.inference.pipeline import TextToImage, load
from imagen_pl.inference.sampling_options import check_noise
from imagen_pl.models.generators.upsampler import Upsampler, add_noise
from imagen_pl.types import TextFeatures

TILE = 256  # px of the small picture


class Upscaler:
    """Enlarges pictures. `load_upscaler` makes one.

    Args:
        model: a model whose generator is an Upsampler.

    Raises:
        UserError: it is another generator.
    """

    def __init__(self, model: TextToImage) -> None:
        if not isinstance(model.generator, Upsampler):
            raise UserError(
                f"this model draws with {type(model.generator).__name__}, which does not enlarge pictures: "
                "train one with configs/experiment/upsampler.yaml"
            )
        self.model, self.generator = model, model.generator

    @property
    def factor(self) -> int:
        """How many times as large the result is."""
        return self.generator.factor

    def upscale(
        self,
        picture: Image.Image,
        prompt: str = "",
        noise: float = 0.0,
        seed: int = 0,
        tile: int = TILE,
        on_tile: Callable[[int], object] | None = None,
    ) -> Image.Image:
        """The picture, `factor` times as large; the result does not depend on the tiles.

        Args:
            picture: of any size and mode. Transparency is kept: it is enlarged like a grey picture.
            prompt: what it shows; "" if that is not known.
            noise: standard deviation of noise that is added first, on the scale of -1 to 1; at most what was
                seen in training, `generator.noise`. With a little of it (0.05) the network may replace faults
                of pictures that another model drew; too much leaves a mottled ground.
            seed: of the noise.
            tile: side of the tiles, px of the small picture; smaller ones take less memory.
            on_tile: called after each tile with 1.

        Raises:
            UserError: noise or tile is out of range.
        """
        check_upscaling(noise, tile)
        if noise > self.generator.noise:
            raise UserError(
                f"noise {noise} is more than this upsampler has seen in training, {self.generator.noise}"
            )
        text = self.model.text_encoder.encode([prompt], self.model.device)
        if not _is_transparent(picture):
            return to_pil(to_uint8(self._pixels(_tensor(picture), text, noise, seed, tile, on_tile)))[0]
        layer = picture.convert("RGBA")
        on_white = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        alpha = Image.merge("RGB", [layer.getchannel("A")] * 3)
        colours, shape = (
            (self._pixels(_tensor(each), text, noise, seed, tile, on_tile) + 1) / 2
            for each in (on_white, alpha)
        )
        opacity = shape.mean(1, keepdim=True).clamp(0, 1)
        # Takes the white away again: seen = colour * opacity + 1 - opacity.
        own = ((colours - 1 + opacity) / opacity.clamp_min(1 / 255)).clamp(0, 1)
        levels = (torch.cat([own, opacity], 1)[0] * 255).round().byte().permute(1, 2, 0)
        return Image.fromarray(levels.contiguous().cpu().numpy())

    def tiles(self, picture: Image.Image, tile: int = TILE) -> int:
        """How often `upscale` calls `on_tile` for a picture."""
        number = len(list(_tiles(picture.height, picture.width, self._step(tile))))
        return number * (1 + _is_transparent(picture))

    def _step(self, tile: int) -> int:
        """The tile's side as a multiple of the network's alignment."""
        return max(1, tile // self.generator.alignment) * self.generator.alignment

    @torch.inference_mode()
    def _pixels(
        self,
        small: Float[Tensor, "1 3 h w"],
        text: TextFeatures,
        noise: float,
        seed: int,
        tile: int,
        on_tile: Callable[[int], object] | None,
    ) -> Float[Tensor, "1 3 f*h f*w"]:
        level = torch.full((1,), noise)
        if noise:  # on the CPU, so that a seed gives the same noise on every device
            small = add_noise(small, level, torch.Generator().manual_seed(seed))
        small, level = small.to(self.model.device), level.to(self.model.device)
        f, halo = self.factor, self.generator.halo
        h, w = small.shape[-2:]
        large = small.new_empty(1, 3, f * h, f * w)
        for top, bottom, left, right in _tiles(h, w, self._step(tile)):
            # The network sees everything around the tile that can reach it.
            y, x = max(0, top - halo), max(0, left - halo)
            part = self.generator.upscale(small[:, :, y : bottom + halo, x : right + halo], level, text)
            own = part[:, :, f * (top - y) : f * (bottom - y), f * (left - x) : f * (right - x)]
            large[:, :, f * top : f * bottom, f * left : f * right] = own
            if on_tile is not None:
                on_tile(1)
        return large


def load_upscaler(path: str | Path, device: str | torch.device | None = None) -> Upscaler:
    """An Upscaler from a run's folder, a .ckpt file or a release; the arguments are those of `load`.

    Raises:
        UserError: there is no such model, or it does not enlarge pictures.
    """
    return Upscaler(load(path, device))


def check_upscaling(noise: float, tile: int, prefix: str = "") -> None:
    """Raise UserError if an argument of `Upscaler.upscale` is out of range.

    Args:
        noise: as of `upscale`.
        tile: as of `upscale`.
        prefix: of the names in the message, as "--".
    """
    check_noise(noise, f"{prefix}noise")
    if tile < 1:
        raise UserError(f"{prefix}tile {tile} must be 1 or more")


def _tiles(height: int, width: int, step: int) -> Iterator[tuple[int, int, int, int]]:
    """Top, bottom, left and right of each tile."""
    for top in range(0, height, step):
        for left in range(0, width, step):
            yield top, min(top + step, height), left, min(left + step, width)


def _is_transparent(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info


def _tensor(picture: Image.Image) -> Float[Tensor, "1 3 h w"]:
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
