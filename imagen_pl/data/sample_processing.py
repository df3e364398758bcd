"""What is done to a sample at random: which of its captions is taken, caption dropout, flips, crops.

Axes: b batch, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from imagen_pl.data.batch_samplers import (
    CROP_X,
    CROP_Y,
    DROP_CAPTION,
    FLIP,
    WHICH_CAPTION,
    Integers,
    drawn,
    uniform,
)
from imagen_pl.data.transforms import Fit, decode
from imagen_pl.errors import UserError
from imagen_pl.types import CaptionedBatch, TextFeatures, width_of

TextLookup = Callable[[list[str]], TextFeatures]
LatentLookup = Callable[[Integers, int], Tensor]  # rows and a resolution, px


@dataclass(frozen=True)
class SampleProcessing:
    """What is done to every sample; the arguments are those of CaptionedImages."""

    fit: Fit = "crop"
    background: tuple[int, int, int] = (255, 255, 255)
    horizontal_flip: bool = False
    caption_dropout: float = 0.0
    seed: int = 0
    crop_from: int | None = None
    aspect_ratio: float = 1.0
    alpha: bool = False

    def shape(self, resolution: int) -> tuple[int, int, int]:
        """Channels, height and width of decoded images, where the networks are given `resolution` px."""
        height = self._height(resolution)
        return (4 if self.alpha else 3, height, width_of(height, self.aspect_ratio))

    def settings(self) -> tuple[object, ...]:
        """What decides how images are decoded, for fingerprints; what has its default is left out."""
        named: tuple[object, ...] = (self.fit, self.background)
        if self.crop_from is not None:
            named += (self.crop_from, self.seed)
        if self.aspect_ratio != 1 or self.alpha:
            named += (f"aspect ratio {self.aspect_ratio}, alpha {self.alpha}",)
        return named

    def _height(self, resolution: int) -> int:
        """Height of decoded images, px."""
        if self.crop_from is None:
            return resolution
        if self.crop_from < resolution:
            raise UserError(
                f"data.crop_from {self.crop_from} must be {resolution} or more, as the images are"
            )
        return self.crop_from

    def decode(self, image: bytes | object, resolution: int) -> UInt8[Tensor, "c h w"]:
        """A decoded image of `shape(resolution)`."""
        height, how = self._height(resolution), (self.fit, self.background, self.aspect_ratio, self.alpha)
        return decode(image, height, *how)  # type: ignore[arg-type]

    def crop(
        self, images: UInt8[Tensor, "b c h w"], numbers: Integers, resolution: int
    ) -> UInt8[Tensor, "b c _r _s"]:
        """A random part of each image; the images as they are without `crop_from`."""
        if images.shape[-2] == resolution:
            return images
        width = width_of(resolution, self.aspect_ratio)
        lefts, tops = (
            (uniform(self.seed, axis, numbers) * (room + 1)).astype(int)
            for axis, room in ((CROP_X, images.shape[-1] - width), (CROP_Y, images.shape[-2] - resolution))
        )
        return torch.stack(
            [
                image[:, top : top + resolution, left : left + width]
                for image, left, top in zip(images, lefts, tops, strict=True)
            ]
        )

    def collate(
        self,
        images: UInt8[Tensor, "b c h w"],
        choices: list[tuple[str, ...]],
        numbers: Integers,
        text_lookup: TextLookup | None,
        dropout_numbers: Integers | None = None,
    ) -> CaptionedBatch:
        """Make a batch; choose each sample's caption, caption dropout and flip at random.

        Args:
            images: of the samples.
            choices: the captions of each.
            numbers: of the samples.
            text_lookup: features of captions, from a cache.
            dropout_numbers: the numbers that decide about caption dropout; None takes the samples' own.
        """
        captions = [words[0] for words in choices]
        if any(len(words) > 1 for words in choices):
            draws = uniform(self.seed, WHICH_CAPTION, numbers)
            captions = [drawn(words, u) for words, u in zip(choices, draws, strict=True)]
        if self.caption_dropout:
            deciding = numbers if dropout_numbers is None else dropout_numbers
            dropped = uniform(self.seed, DROP_CAPTION, deciding) < self.caption_dropout
            captions = ["" if drop else c for c, drop in zip(captions, dropped, strict=True)]
        if self.horizontal_flip:
            flipped = torch.from_numpy(uniform(self.seed, FLIP, numbers) < 0.5)
            images[flipped] = images[flipped].flip(-1)
        text = None if text_lookup is None else text_lookup(captions)
        return CaptionedBatch(images, captions, torch.from_numpy(numbers), text)
