"""What flows between the parts of imagen_pl.

Axes, here and in every file: b batch, c channels, h w pixels, t tokens, z latent, style.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor


@dataclass
class TextFeatures:
    """A batch of encoded captions.

    tokens: one vector a token; rows of padding are zero.
    mask: True where a token is real, False where it is padding.
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
        """Move to a device; `dtype` applies to the vectors and leaves the mask alone."""
        return TextFeatures(
            self.tokens.to(device=device, dtype=dtype, non_blocking=non_blocking),
            self.mask.to(device=device, non_blocking=non_blocking),
            self.pooled.to(device=device, dtype=dtype, non_blocking=non_blocking),
        )

    def pin_memory(self) -> TextFeatures:
        return TextFeatures(self.tokens.pin_memory(), self.mask.pin_memory(), self.pooled.pin_memory())

    def with_noise(self, share: float) -> TextFeatures:
        """Add to each vector Gaussian noise of about `share` of its length; rows of padding stay zero."""

        def noisy(x: Tensor) -> Tensor:
            return x + share * torch.randn_like(x) * x.square().mean(-1, keepdim=True).sqrt()

        return TextFeatures(noisy(self.tokens), self.mask, noisy(self.pooled))

    def roll(self, shift: int = 1) -> TextFeatures:
        """Give every row its neighbour's caption: the mismatched pairs of GAN-INT-CLS (arXiv:1605.05396)."""
        return TextFeatures(self.tokens.roll(shift, 0), self.mask.roll(shift, 0), self.pooled.roll(shift, 0))


@dataclass
class CaptionedBatch:
    """Images with their captions, as a data source serves them.

    images: sRGB, 0 to 255.
    captions: one a row; "" where caption dropout took the words away.
    indices: the sample's number: in training its place in the endless stream of samples, in
        validation its place in the split. Latents of validation are drawn from it, so that the
        score does not depend on how many processes share the work.
    text: the captions' features where a cache already holds them, else None: encode in the step.
    """

    images: UInt8[Tensor, "b 3 h w"]
    captions: list[str]
    indices: Int64[Tensor, " b"]
    text: TextFeatures | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> CaptionedBatch:
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            indices=self.indices.to(device, non_blocking=non_blocking),
            text=None if self.text is None else self.text.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> CaptionedBatch:
        return replace(
            self,
            images=self.images.pin_memory(),
            indices=self.indices.pin_memory(),
            text=None if self.text is None else self.text.pin_memory(),
        )


@dataclass
class EncodedBatch:
    """A training batch as the networks read it, made once a step.

    images: -1 to 1, faded like the generator's newest block.
    text: the captions' features.
    captions: the captions.
    """

    images: Float[Tensor, "b 3 r r"]
    text: TextFeatures
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, rows: slice) -> EncodedBatch:
        return EncodedBatch(self.images[rows], self.text[rows], self.captions[rows])


@dataclass(frozen=True)
class Growth:
    """How far the networks have grown.

    resolution: side of the images, px.
    fade: weight of the newest block's output, 0 (not yet heard) to 1 (fully grown).
    """

    resolution: int
    fade: float = 1.0
