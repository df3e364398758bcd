"""Self-attention between pixels, cross-attention from pixels to a caption's tokens, and between tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from imagen_pl.models.layers.precision import at_least_float32

# Up to this many keys the plain product is faster than the fused kernel: 8 times on a CPU, for a caption.
_MAX_KEYS_UNFUSED = 256


class SelfAttention(nn.Module):
    """Self-attention between all pixels (arXiv:1805.08318), in a residual branch that starts at zero.

    Queries and keys have unit length and a learned temperature (arXiv:2010.04245): their products
    cannot explode, which keeps bfloat16 training finite.

    Args:
        channels: feature maps; a multiple of `heads`.
        heads: attention heads.
        fused: use torch's fused kernel for maps with many pixels. It takes less memory but cannot be
            differentiated twice, which gradient penalties need in a discriminator.
    """

    def __init__(self, channels: int, heads: int = 4, fused: bool = True) -> None:
        super().__init__()
        _check_heads(channels, heads)
        self.heads, self.fused = heads, fused
        self.norm = nn.GroupNorm(1, channels)
        self.queries_keys_values = nn.Linear(channels, 3 * channels, bias=False)
        self.out = _zero_linear(channels)
        self.log_temperature = nn.Parameter(torch.zeros(heads, 1, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # (b, hw, c)
        q, k, v = (_split(part, self.heads) for part in self.queries_keys_values(pixels).chunk(3, -1))
        return x + _to_map(self.out(_attend(q, k, v, self.log_temperature, fused=self.fused)), x)


class CrossAttention(nn.Module):
    """Cross-attention from pixels to a caption's tokens, as in AttnGAN (arXiv:1711.10485) and GigaGAN.

    A learned empty token is added to the caption's, so that a pixel can attend to none of them, and an
    empty caption still gives finite numbers.

    Args:
        channels: feature maps; a multiple of `heads`.
        text_dim: size of a token's vector.
        heads: attention heads.
        norm: of the maps, before the queries; None is over all pixels together.
    """

    def __init__(self, channels: int, text_dim: int, heads: int = 4, norm: nn.Module | None = None) -> None:
        super().__init__()
        _check_heads(channels, heads)
        self.heads = heads
        self.norm = nn.GroupNorm(1, channels) if norm is None else norm
        self.queries = nn.Linear(channels, channels, bias=False)
        self.keys_values = nn.Linear(text_dim, 2 * channels, bias=False)
        self.empty_word = nn.Parameter(torch.zeros(1, 1, text_dim))
        self.out = _zero_linear(channels)
        self.log_temperature = nn.Parameter(torch.zeros(heads, 1, 1))

    def forward(
        self, x: Float[Tensor, "b c h w"], tokens: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b c h w"]:
        b = x.shape[0]
        words = torch.cat([self.empty_word.expand(b, 1, -1).to(tokens.dtype), tokens], dim=1)
        real = torch.cat([mask.new_ones(b, 1), mask], dim=1)
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # (b, hw, c)
        q = _split(self.queries(pixels), self.heads)
        k, v = (_split(part, self.heads) for part in self.keys_values(words).chunk(2, -1))
        return x + _to_map(self.out(_attend(q, k, v, self.log_temperature, real[:, None, None, :])), x)


class WordAttention(nn.Module):
    """Self-attention between a caption's vectors, in a residual branch that starts at zero.

    Args:
        channels: size of a vector; a multiple of `heads`.
        heads: attention heads.
    """

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        _check_heads(channels, heads)
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.queries_keys_values = nn.Linear(channels, 3 * channels, bias=False)
        self.out = _zero_linear(channels)
        self.log_temperature = nn.Parameter(torch.zeros(heads, 1, 1))

    def forward(self, x: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t c"]:
        """`mask` is True where a vector is not padding; each row needs one such vector."""
        q, k, v = (_split(part, self.heads) for part in self.queries_keys_values(self.norm(x)).chunk(3, -1))
        # Not fused: a gradient penalty differentiates it twice, with regard to the caption.
        return x + self.out(_attend(q, k, v, self.log_temperature, mask[:, None, None, :], fused=False))


def _check_heads(channels: int, heads: int) -> None:
    if channels % heads:
        raise ValueError(f"attention needs channels that its {heads} heads share evenly, not {channels}")


def _zero_linear(channels: int) -> nn.Linear:
    layer = nn.Linear(channels, channels)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _split(x: Float[Tensor, "b n c"], heads: int) -> Float[Tensor, "b heads n d"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads m d"],
    v: Float[Tensor, "b heads m d"],
    log_temperature: Float[Tensor, "heads 1 1"],
    mask: Bool[Tensor, "b 1 1 m"] | None = None,
    fused: bool = True,
) -> Float[Tensor, "b n c"]:
    scale = log_temperature.exp().to(q.dtype) * q.shape[-1] ** 0.5
    q, k = _unit(q) * scale, _unit(k)
    if not fused or k.shape[2] <= _MAX_KEYS_UNFUSED:
        logits = q @ k.transpose(-2, -1)
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        mixed = at_least_float32(logits).softmax(-1).to(v.dtype) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    return mixed.transpose(1, 2).flatten(2)


def _unit(x: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b heads n d"]:
    """Unit length, smooth even at zero, where F.normalize's second derivative is not a number.

    The length is computed in float32: near zero, its gradient overflows float16.
    """
    return x * torch.rsqrt(at_least_float32(x).square().sum(-1, keepdim=True) + 1e-6).to(x.dtype)


def _to_map(pixels: Float[Tensor, "b hw c"], like: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return pixels.transpose(1, 2).reshape(like.shape).to(like.dtype)
