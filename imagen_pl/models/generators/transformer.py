"""The generator of GAT, a GAN of transformers (arXiv:2509.24935), here with captions.

Axes: b batch, n tokens, c channels of a token, h w pixels, k channels of all levels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.generators.base import Generator
from imagen_pl.models.layers.attention import CrossAttention
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.transformer import RMSNorm, SwiGLU, TokenAttention, check_transformer
from imagen_pl.types import EncodedBatch, Growth, TextFeatures


class TransformerGenerator(Generator):
    """Learned tokens, one for each square of pixels, through blocks that latent and caption modulate.

    After each part of the blocks, as many as `noise` is long, the tokens add to the image: four images by
    default, each on top of the one before.
    In training the discriminator gets them all, joined in channels, each with less noise than the one before,
    and real images with the same noise. So early blocks are taught by coarse judgements, and deep stacks
    start to learn at once (the paper's multi-level noise-perturbed guidance). A share s of noise e makes
    (1 - s) x + s e of an image x. Elsewhere only the last image is used.

    Args:
        resolution: height of the images, px.
        patch: side of a token's square, px.
        width: channels of a token.
        depth: blocks.
        heads: attention heads.
        text_dim: size of the text encoder's vectors.
        latent_dim: size of the latent z.
        text_attention_every: every nth block attends to the caption's tokens; 0 none.
        noise: share of noise in each of the images that the discriminator gets, from the first to the last,
            which has none.
        image_channels: of the images: 3 for RGB, 4 for RGBA, or those of an autoencoder's latents.
        aspect_ratio: width of the images / their height; both are whole numbers of patches.
    """

    def __init__(
        self,
        resolution: int = 32,
        patch: int = 4,
        width: int = 192,
        depth: int = 8,
        heads: int = 3,
        text_dim: int = 384,
        latent_dim: int = 64,
        text_attention_every: int = 2,
        noise: list[float] | None = None,
        image_channels: int = 3,
        aspect_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        self.grid = check_transformer(
            "TransformerGenerator", resolution, aspect_ratio, patch, width, depth, heads
        )
        self.noise = [0.875, 0.75, 0.5, 0.0] if noise is None else noise
        levels = self.images_per_sample = len(self.noise)
        if not self.noise or self.noise[-1] != 0 or not all(0 <= share < 1 for share in self.noise):
            raise ValueError(f"TransformerGenerator.noise {self.noise}: shares of 0 to 1, the last of them 0")
        if depth % levels:
            raise ValueError(f"TransformerGenerator.depth {depth} must be a multiple of its {levels} images")
        self.resolutions, self.latent_dim, self.text_dim = (resolution,), latent_dim, text_dim
        self.patch, self.image_channels, self.aspect_ratio = patch, image_channels, aspect_ratio
        self.tokens = nn.Parameter(torch.randn(1, math.prod(self.grid), width))
        self.read_caption = nn.Linear(text_dim, width)
        self.mapping = nn.Sequential(nn.Linear(latent_dim + width, width), nn.SiLU(), nn.Linear(width, width))
        every = text_attention_every
        self.layers = nn.ModuleList(
            StyledBlock(width, heads, self.grid, text_dim if every and i % every == every - 1 else None)
            for i in range(depth)
        )
        self.to_rgb = nn.ModuleList(
            nn.Sequential(RMSNorm(width), nn.Linear(width, image_channels * patch**2)) for _ in range(levels)
        )

    def forward(  # type: ignore[override]  # no guidance
        self,
        z: Float[Tensor, "b z"],
        text: TextFeatures,
        growth: Growth | None = None,
        truncation: float = 1.0,
    ) -> Float[Tensor, "b _c h w"]:
        self.check_growth(growth)
        return self.images(truncation * z, text)[-1]

    def images(self, z: Float[Tensor, "b z"], text: TextFeatures) -> list[Float[Tensor, "b _c h w"]]:
        """The image after each part of the blocks; the last one is the result."""
        style = self.mapping(torch.cat([z, self.read_caption(text.pooled)], 1))
        x = self.tokens.expand(len(z), -1, -1)
        part = len(self.layers) // len(self.to_rgb)
        found: list[Tensor] = []
        for i, layer in enumerate(self.layers, 1):
            x = layer(x, style, text)
            if i % part == 0:
                squares = self.to_rgb[i // part - 1](x).transpose(1, 2).unflatten(2, self.grid)
                added = at_least_float32(F.pixel_shuffle(squares, self.patch))
                found.append(found[-1] + added if found else added)
        return found

    def for_batch(
        self, z: Float[Tensor, "b z"], batch: EncodedBatch, growth: Growth | None = None
    ) -> Float[Tensor, "b k h w"]:
        """In training all images, joined in channels and with noise; else the last one."""
        self.check_growth(growth)
        found = self.images(z, batch.text)
        return self._with_noise(found) if self.training else found[-1]

    def like_generated(self, batch: EncodedBatch) -> Float[Tensor, "b k h w"]:
        return self._with_noise([batch.images] * len(self.noise)) if self.training else batch.images

    def _with_noise(self, images: list[Float[Tensor, "b _c h w"]]) -> Float[Tensor, "b k h w"]:
        mixed = [
            image.lerp(torch.randn_like(image), share) if share else image
            for image, share in zip(images, self.noise, strict=True)
        ]
        return torch.cat(mixed, 1)


class StyledBlock(nn.Module):
    """Attention and a gated layer, scaled, shifted and gated by the style as in DiT (arXiv:2212.09748).

    Args:
        width: channels of a token.
        heads: attention heads.
        grid: rows of tokens, and tokens a row.
        text_dim: size of a caption token's vector, if the block attends to them; None for no such attention.
    """

    def __init__(self, width: int, heads: int, grid: tuple[int, int], text_dim: int | None) -> None:
        super().__init__()
        self.grid = grid
        self.first_norm, self.second_norm = (RMSNorm(width, learned=False) for _ in range(2))
        self.attention, self.gated = TokenAttention(width, heads, *grid), SwiGLU(width)
        self.words = None if text_dim is None else CrossAttention(width, text_dim, heads)
        self.modulation = nn.Linear(width, 6 * width)
        # Gates of 0.1 and no other change at first: a deep stack starts close to the identity.
        nn.init.normal_(self.modulation.weight, std=0.1 * width**-0.5)
        nn.init.zeros_(self.modulation.bias)
        with torch.no_grad():
            self.modulation.bias.view(6, width)[[2, 5]] = 0.1

    def forward(
        self, x: Float[Tensor, "b n c"], style: Float[Tensor, "b c"], text: TextFeatures
    ) -> Float[Tensor, "b n c"]:
        changes = self.modulation(F.silu(style))[:, None].chunk(6, -1)
        scale, shift, gate = changes[:3]
        x = x + gate * self.attention(self.first_norm(x) * (1 + scale) + shift)
        if self.words is not None:
            pixels = x.transpose(1, 2).unflatten(2, self.grid)
            x = self.words(pixels, text.tokens, text.mask).flatten(2).transpose(1, 2)
        scale, shift, gate = changes[3:]
        return x + gate * self.gated(self.second_norm(x) * (1 + scale) + shift)
