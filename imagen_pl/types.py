"""The data types that the parts of imagen_pl exchange.

Axes, here and in every file: b batch, c channels, h w pixels, t tokens, z latent, style.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from imagen_pl.errors import UserError


@dataclass
class TextFeatures:
    """A batch of encoded captions.

    tokens: one vector a token; padding is zero.
    mask: True for tokens, False for padding.
    pooled: one vector a caption.
    """

    tokens: Float[Tensor, "b t c"]
    mask: Bool[Tensor, "b t"]
    pooled: Float[Tensor, "b c"]

    def __len__(self) -> int:
        return self.pooled.shape[0]

    @property
    def dim(self) -> int:
        return self.pooled.shape[1]

    def __getitem__(self, rows: slice | Int64[Tensor, " n"]) -> TextFeatures:
        return TextFeatures(self.tokens[rows], self.mask[rows], self.pooled[rows])

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> TextFeatures:
        """Move to a device; `dtype` converts the vectors but not the mask."""
        return TextFeatures(
            self.tokens.to(device=device, dtype=dtype, non_blocking=non_blocking),
            self.mask.to(device=device, non_blocking=non_blocking),
            self.pooled.to(device=device, dtype=dtype, non_blocking=non_blocking),
        )

    def pin_memory(self) -> TextFeatures:
        return TextFeatures(self.tokens.pin_memory(), self.mask.pin_memory(), self.pooled.pin_memory())

    def with_noise(self, share: float) -> TextFeatures:
        """Add Gaussian noise with a norm of about `share` of each vector's; padding stays zero."""

        def noisy(x: Tensor) -> Tensor:
            return x + share * torch.randn_like(x) * x.square().mean(-1, keepdim=True).sqrt()

        return TextFeatures(noisy(self.tokens), self.mask, noisy(self.pooled))

    def roll(self, shift: int = 1) -> TextFeatures:
        """Give every row its neighbour's caption: the mismatched pairs of GAN-INT-CLS (arXiv:1605.05396)."""
        return TextFeatures(self.tokens.roll(shift, 0), self.mask.roll(shift, 0), self.pooled.roll(shift, 0))


class LanePosition(NamedTuple):
    """The read position in a lane of shards (imagen_pl.data.shard_lanes).

    block: number of the current block.
    cycle: pass over the shards in which the block begins.
    shard: index of the block's first shard in that pass.
    row: index of the block's first row in that shard.
    taken: number of rows of the block that were returned.
    """

    block: int = 0
    cycle: int = 0
    shard: int = 0
    row: int = 0
    taken: int = 0


class StreamMark(NamedTuple):
    """The state of a stream after a batch.

    lane: the lane that the batch was read from.
    position: the lane's position after the batch.
    clock: images seen after the batch.
    ends_epoch: whether it is the last batch of its epoch.
    skipped: reason and name of everything skipped since the worker's previous batch.
    """

    lane: int
    position: LanePosition
    clock: int
    ends_epoch: bool
    skipped: list[tuple[str, str]]


@dataclass
class CaptionedBatch:
    """Images with their captions, as the data module provides them.

    images: sRGB, 0 to 255; with alpha as a fourth channel, the colours are those on white.
    captions: one an image; "" if caption dropout removed it.
    indices: number of each sample: in training its position in the endless stream of samples, in
        validation its position in the split. Validation latents are drawn from it, so that scores do not
        depend on the number of processes.
    text: the captions' features if they are cached; None if the step has to encode them.
    latents: the images' latents, of a generator that draws latents, if they are cached; else None.
    stream: state of the stream after the batch; None if the source is not a stream.
    """

    images: UInt8[Tensor, "b c h w"]
    captions: list[str]
    indices: Int64[Tensor, " b"]
    text: TextFeatures | None = None
    latents: Float[Tensor, "b _k _h _w"] | None = None
    stream: StreamMark | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> CaptionedBatch:
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            indices=self.indices.to(device, non_blocking=non_blocking),
            text=None if self.text is None else self.text.to(device, non_blocking=non_blocking),
            latents=None if self.latents is None else self.latents.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> CaptionedBatch:
        return replace(
            self,
            images=self.images.pin_memory(),
            indices=self.indices.pin_memory(),
            text=None if self.text is None else self.text.pin_memory(),
            latents=None if self.latents is None else self.latents.pin_memory(),
        )


@dataclass
class EncodedBatch:
    """A training batch in the form that the networks read, prepared once a step.

    images: -1 to 1, faded in like the generator's newest block.
    text: the captions' features.
    captions: the captions.
    latents: the images' latents, faded in alike, in training with a generator that draws latents; else None.
    """

    images: Float[Tensor, "b _c h w"]
    text: TextFeatures
    captions: list[str]
    latents: Float[Tensor, "b _k _h _w"] | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, rows: slice) -> EncodedBatch:
        latents = None if self.latents is None else self.latents[rows]
        return EncodedBatch(self.images[rows], self.text[rows], self.captions[rows], latents)


@dataclass(frozen=True)
class Growth:
    """How far the networks have grown.

    resolution: height of the images, px; their width is `width_of` it and the networks' aspect ratio.
    fade: weight of the newest block's output, 0 (no effect yet) to 1 (fully grown).
    """

    resolution: int
    fade: float = 1.0

    def reduced(self, factor: int) -> Growth:
        """The same growth of latents whose side is that of the images divided by `factor`."""
        return Growth(self.resolution // factor, self.fade)


def width_of(resolution: int, aspect_ratio: float) -> int:
    """The width, px, of images of this height and aspect ratio, which is width / height.

    Raises:
        UserError: it is not a whole number from 1 up; the message names ratios that give one.
    """
    width = resolution * aspect_ratio
    if math.isfinite(width) and round(width) >= 1 and abs(width - round(width)) < 1e-6 * resolution:
        return round(width)
    near = (
        ""
        if not 0 < width < 1e6
        else ", "
        + " or ".join(f"{n / resolution:g}" for n in sorted({max(1, math.floor(width)), math.ceil(width)}))
    )
    raise UserError(
        f"aspect_ratio {aspect_ratio:g}: images of {resolution} px height would not have a whole number of "
        f"pixels as width: use a multiple of {1 / resolution:g}{near}"
    )
