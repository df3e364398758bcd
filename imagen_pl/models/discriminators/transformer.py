"""The discriminator of GAT, a GAN of transformers (arXiv:2509.24935), here with captions.

Axes: b batch, n tokens, c channels of a token, h w pixels, k channels of all images of a sample.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.transformer import RMSNorm, SwiGLU, TokenAttention, check_transformer
from imagen_pl.types import Growth, TextFeatures


class TransformerDiscriminator(Discriminator):
    """A vision transformer; its mean token is scored with the caption by projection (arXiv:1802.05637).

    Args:
        resolution: height of the images, px.
        patch: side of a token's square, px.
        width: channels of a token.
        depth: blocks.
        heads: attention heads.
        text_dim: size of the text encoder's vectors.
        images: how many images, joined in channels, a TransformerGenerator gives: the length of its `noise`.
        layer_scale: first factor of each block's output, which is trained (arXiv:2103.17239).
        image_channels: of one image: 3 for RGB, 4 for RGBA, or those of an autoencoder's latents.
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
        images: int = 4,
        layer_scale: float = 0.1,
        image_channels: int = 3,
        aspect_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        self.grid = check_transformer(
            "TransformerDiscriminator", resolution, aspect_ratio, patch, width, depth, heads
        )
        self.resolutions, self.text_dim, self.final_dim = (resolution,), text_dim, width
        self.images_per_sample, self.image_channels = images, image_channels
        self.map_channels, self.aspect_ratio = {self.grid[0]: width}, aspect_ratio
        self.embed = nn.Conv2d(image_channels * images, width, patch, stride=patch)
        self.layers = nn.ModuleList(ScaledBlock(width, heads, self.grid, layer_scale) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.unconditional = nn.Linear(width, 1)
        self.text = nn.Linear(text_dim, width)

    def extract_features(
        self, images: Float[Tensor, "b k h w"], growth: Growth | None = None
    ) -> ImageFeatures:
        self.check_growth(images, growth)
        x = self.embed(images).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        tokens = x.transpose(1, 2).unflatten(2, self.grid)
        return ImageFeatures({self.grid[0]: tokens}, x.mean(1))

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Float[Tensor, "b 1"]:
        x = features.final
        match = (self.text(text.pooled) * x).sum(1, keepdim=True) * self.final_dim**-0.5
        return at_least_float32(self.unconditional(x) + match)


class ScaledBlock(nn.Module):
    """Attention and a gated layer, each with a factor for every channel (LayerScale, arXiv:2103.17239)."""

    def __init__(self, width: int, heads: int, grid: tuple[int, int], layer_scale: float) -> None:
        super().__init__()
        self.first_norm, self.second_norm = (RMSNorm(width) for _ in range(2))
        self.attention, self.gated = TokenAttention(width, heads, *grid, fused=False), SwiGLU(width)
        self.first_scale, self.second_scale = (
            nn.Parameter(torch.full((width,), layer_scale)) for _ in range(2)
        )

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        x = x + self.first_scale * self.attention(self.first_norm(x))
        return x + self.second_scale * self.gated(self.second_norm(x))
