"""A generator that enlarges images, with a caption to say what they show.

Axes: b batch, h w pixels of the small image, H W of the large one, e embedding.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.degradation import Degradation
from imagen_pl.models.generators.base import ImageToImageGenerator
from imagen_pl.models.layers.attention import CrossAttention
from imagen_pl.models.layers.equalized import PixelNorm
from imagen_pl.models.layers.initialisation import SLOPE, conv, linear
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.resampling import downsample, upsample
from imagen_pl.types import EncodedBatch, Growth, TextFeatures

Small = Float[Tensor, "b 3 h w"]
Large = Float[Tensor, "b 3 H W"]
_FREQUENCIES = 8  # of the sines that encode the noise level


class Upsampler(ImageToImageGenerator):
    """Enlarges images of any size: a U-Net at the small size, then sub-pixel convolutions (arXiv:1609.05158).

    It adds detail to the bicubically enlarged image. As in cascades of diffusion models (arXiv:2106.15282,
    section 4.2) and in GigaGAN (arXiv:2303.05511, section 3.4), small images get noise in training, and the
    network is conditioned on its level, so that it also takes images that another model drew. Every layer
    reads a bounded neighbourhood, `halo`, so that a large image can be enlarged in tiles without seams. It
    draws no random detail: the latent is not used.

    Args:
        resolution: side of the large images in training, px; with `data.crop_from` they are squares cut from
            larger ones.
        factor: how many times as large the result is, 2, 4 or 8.
        channels: feature maps at the small image's size, at half of it, and so on.
        blocks: residual blocks on the way down and on the way up, at each of these sizes.
        text_dim: size of the text encoder's vectors.
        embedding_dim: size of the vector that tells the blocks the caption and the noise level.
        text_attention: the smallest size attends to the caption's tokens.
        noise: largest standard deviation of the noise added in training, on the scale of -1 to 1.
        clean_share: share of small images that get no noise, 0 to 1.
        degradation: how small images are made; None resizes alone.
    """

    verb = "upscale"

    def __init__(
        self,
        resolution: int = 128,
        factor: int = 4,
        channels: list[int] | None = None,
        blocks: int = 2,
        text_dim: int = 384,
        embedding_dim: int = 128,
        text_attention: bool = True,
        noise: float = 0.3,
        clean_share: float = 0.5,
        degradation: Degradation | None = None,
    ) -> None:
        super().__init__()
        widths = [48, 96, 128] if channels is None else channels
        if factor not in (2, 4, 8):
            raise UserError(f"Upsampler.factor {factor} must be 2, 4 or 8")
        if not widths or blocks < 1:
            raise UserError("Upsampler needs one or more channels and blocks")
        if resolution % (factor * 2 ** (len(widths) - 1)):
            raise UserError(
                f"Upsampler.resolution {resolution} must be a multiple of {factor * 2 ** (len(widths) - 1)}: "
                f"the factor {factor} times 2 for each halving"
            )
        if noise < 0 or not 0 <= clean_share <= 1:
            raise UserError(f"Upsampler.noise {noise} must be 0 or more, clean_share {clean_share} 0 to 1")
        self.resolutions, self.latent_dim, self.text_dim = (resolution,), 1, text_dim
        self.factor, self.noise, self.clean_share = factor, noise, clean_share
        self.degradation = Degradation() if degradation is None else degradation
        self.embed_level = linear(2 * _FREQUENCIES, embedding_dim)
        self.embed_text = nn.Linear(text_dim, embedding_dim)
        self.first = conv(3, widths[0], 3)
        self.down = nn.ModuleList(Stack(width, blocks, embedding_dim) for width in widths)
        self.halve = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(widths))
        self.text_attention = (
            CrossAttention(widths[-1], text_dim, norm=PixelNorm()) if text_attention else None
        )
        self.up = nn.ModuleList(Stack(width, blocks, embedding_dim) for width in widths)
        self.merge = nn.ModuleList(nn.Conv2d(b + a, a, 1) for a, b in itertools.pairwise(widths))
        self.enlarge = nn.ModuleList()
        width = widths[0]
        for _ in range(int(math.log2(factor))):
            narrower = max(16, width // 2)
            self.enlarge.append(conv(width, 4 * narrower, 3))
            width = narrower
        self.to_rgb = conv(width, 3, 3, zero=True)

    @property
    def alignment(self) -> int:
        """Sides of small images are padded to multiples of it, px."""
        return int(2 ** (len(self.down) - 1))

    @property
    def halo(self) -> int:
        """How far from a pixel of the small image the network looks, px; a multiple of `alignment`."""
        reach = 1  # of `first`
        for level, stack in enumerate(self.down):
            side = 2**level
            assert isinstance(stack, Stack)
            # Two convolutions a block, down and up; the bilinear doubling looks one pixel further.
            reach += 4 * len(stack.blocks) * side + (side if level else 0)
        reach += 2 + len(self.enlarge)
        return -(-reach // self.alignment) * self.alignment

    def for_batch(self, z: Float[Tensor, "b z"], batch: EncodedBatch, growth: Growth | None = None) -> Large:
        """The batch's images, made small and enlarged again."""
        self.check_growth(growth)
        small, level = self.small_images(batch.images)
        return self.upscale(small, level, batch.text)

    def rows_to_show(
        self, z: Float[Tensor, "b z"], batch: EncodedBatch, growth: Growth | None = None
    ) -> dict[str, Large]:
        small, level = self.small_images(batch.images)
        return {
            "given": F.interpolate(small, scale_factor=self.factor, mode="nearest"),
            "enlarged": self.upscale(small, level, batch.text),
            "true": batch.images,
        }

    @torch.no_grad()
    def small_images(self, images: Large) -> tuple[Small, Float[Tensor, " b"]]:
        """Small images for training, and the level of the noise in each; without noise in evaluation mode."""
        small = self.degradation(images, self.factor)
        level = small.new_zeros(len(small))
        if self.training:
            level = self.noise * torch.rand_like(level) * (torch.rand_like(level) >= self.clean_share)
        return add_noise(small, level), level

    def upscale(self, small: Small, level: Float[Tensor, " b"], text: TextFeatures) -> Large:
        """Enlarged images, about -1 to 1.

        Args:
            small: images of any size, -1 to 1, with noise.
            level: standard deviation of the noise in each, 0 or more.
            text: what they show; the caption "" if captions were dropped in training.
        """
        h, w = small.shape[-2:]
        padded = F.pad(small, [0, -w % self.alignment, 0, -h % self.alignment], mode="replicate")
        about = F.leaky_relu(self.embed_level(_sines(level)) + self.embed_text(text.pooled), SLOPE)
        x = self.first(padded)
        skips = []
        for i, stack in enumerate(self.down):
            x = stack(x, about)
            if i < len(self.halve):
                skips.append(x)
                x = self.halve[i](downsample(x))
        if self.text_attention is not None:
            x = self.text_attention(x, text.tokens, text.mask)
        x = self.up[-1](x, about)
        for i in reversed(range(len(self.merge))):
            x = self.up[i](self.merge[i](torch.cat([upsample(x), skips[i]], 1)), about)
        for layer in self.enlarge:
            x = F.leaky_relu(F.pixel_shuffle(layer(x), 2), SLOPE)
        detail = at_least_float32(self.to_rgb(x))[:, :, : h * self.factor, : w * self.factor]
        return detail + F.interpolate(small, scale_factor=self.factor, mode="bicubic", align_corners=False)


class Stack(nn.Module):
    """Residual blocks of one size."""

    def __init__(self, channels: int, blocks: int, embedding_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ModulatedBlock(channels, embedding_dim) for _ in range(blocks))

    def forward(self, x: Float[Tensor, "b c h w"], about: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        for block in self.blocks:
            x = block(x, about)
        return x


class ModulatedBlock(nn.Module):
    """A residual block whose maps are scaled and shifted by caption and noise level (arXiv:1709.07871).

    Pixel normalization has no statistics over the image, which would differ from tile to tile.
    """

    def __init__(self, channels: int, embedding_dim: int) -> None:
        super().__init__()
        self.norm = PixelNorm()
        self.first = conv(channels, channels, 3)
        self.second = conv(channels, channels, 3, zero=True)
        self.scale_and_shift = linear(embedding_dim, 2 * channels, zero=True)

    def forward(self, x: Float[Tensor, "b c h w"], about: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        scale, shift = self.scale_and_shift(about)[:, :, None, None].chunk(2, 1)
        y = F.leaky_relu(self.first(self.norm(x)), SLOPE)
        return x + self.second(y * (1 + scale) + shift)


def add_noise(images: Small, level: Float[Tensor, " b"], source: torch.Generator | None = None) -> Small:
    """Images with Gaussian noise of each one's level; at level 0 they stay as they are.

    Args:
        images: -1 to 1.
        level: standard deviation of the noise in each.
        source: of the random numbers, on the images' device; None is torch's.
    """
    noise = torch.randn(images.shape, generator=source, device=images.device, dtype=images.dtype)
    return images + level[:, None, None, None] * noise


def _sines(level: Float[Tensor, " b"]) -> Float[Tensor, "b f"]:
    """Sines and cosines of the level at frequencies that double."""
    angles = level[:, None] * math.pi * 2.0 ** torch.arange(_FREQUENCIES, device=level.device)
    return torch.cat([angles.sin(), angles.cos()], 1)
