"""Networks of a few kB, and caption features for them."""

from __future__ import annotations

import torch
from torch import Tensor

from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.discriminators.multiscale import MultiscaleDiscriminator
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.types import TextFeatures

TEXT_DIM = 6


def text_features(
    captions: int = 4, tokens: int = 5, dim: int = TEXT_DIM, seed: int = 0, dtype: torch.dtype = torch.float32
) -> TextFeatures:
    """Random features; caption i has i % tokens + 1 real tokens, the others are padding."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(tokens)[None] <= (torch.arange(captions) % tokens)[:, None]
    vectors = torch.randn(captions, tokens, dim, generator=draw) * mask[:, :, None]
    return TextFeatures(vectors, mask, torch.randn(captions, dim, generator=draw)).to(dtype=dtype)


def pairs(count: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors, and images whose colours follow from them, so that held-out images can be predicted."""
    source = torch.Generator().manual_seed(seed)
    pooled = torch.randn(count, 16, generator=source)
    colours = (127 + 100 * torch.tanh(pooled[:, :3])).to(torch.uint8)
    return pooled, colours[:, :, None, None].expand(-1, -1, 32, 32).contiguous()


def small_generator(channels: dict[int, int] | None = None, **settings: object) -> StyleGenerator:
    """From 4 to 16 px with attention at 8, by default."""
    torch.manual_seed(0)
    chosen: dict = {
        "text_dim": TEXT_DIM,
        "latent_dim": 5,
        "style_dim": 8,
        "text_attention_at": [8],
        "self_attention_at": [8],
        **settings,
    }
    return StyleGenerator(channels or {4: 8, 8: 8, 16: 4}, **chosen)


def small_discriminator(
    channels: dict[int, int] | None = None, **settings: object
) -> MultiscaleDiscriminator:
    """From 4 to 16 px with heads at 8 and 16 and attention at 8, by default."""
    torch.manual_seed(1)
    chosen: dict = {
        "text_dim": TEXT_DIM,
        "final_dim": 8,
        "heads_at": [8, 16],
        "self_attention_at": [8],
        **settings,
    }
    return MultiscaleDiscriminator(channels or {4: 8, 8: 8, 16: 4}, **chosen)


def awaken(network: torch.nn.Module, seed: int = 2) -> None:
    """Give every parameter that is zero a value, so that every branch has an effect."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))


def assert_blocks_share_nothing(network: Generator | Discriminator, resolutions: tuple[int, ...]) -> None:
    """One block for each resolution, from small to large, and no parameter in two of them."""
    blocks = network.blocks()

    assert tuple(blocks) == network.resolutions == resolutions
    parameters = [id(p) for block in blocks.values() for p in block.parameters()]
    assert len(parameters) == len(set(parameters))
