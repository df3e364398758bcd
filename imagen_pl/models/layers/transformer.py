"""Layers of the transformer GAN: rotary positions, attention, SwiGLU.

Axes: b batch, n tokens, c channels, d channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.types import width_of

# Up to this many tokens the plain product is faster on a CPU than the fused kernel.
_MAX_TOKENS_UNFUSED = 256


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean of x^2 + 1e-6), times a weight for each channel (arXiv:1910.07467), in the dtype of x.

    torch's own has a fast kernel only where weight and input have one dtype, which autocast does not see to.

    Args:
        channels: size of the last axis.
        learned: whether there are weights.
    """

    def __init__(self, channels: int, learned: bool = True) -> None:
        super().__init__(channels, eps=1e-6, elementwise_affine=learned)

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class RotaryPositions(nn.Module):
    """Rotates queries and keys by their place in rows of tokens (arXiv:2104.09864, in two dimensions).

    Half of a head's channels turn with the row, half with the column.

    Args:
        rows: rows of tokens.
        columns: tokens a row.
        head_dim: channels of a head; a multiple of 4.
        base: ratio of the fastest to the slowest rotation.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, rows: int, columns: int, head_dim: int, base: float = 100.0) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"a head's channels, {head_dim}, must be a multiple of 4")
        speeds = base ** -torch.linspace(0, 1, head_dim // 4)
        down, right = (torch.arange(count).float()[:, None] * speeds for count in (rows, columns))
        angles = torch.cat([down[:, None].expand(-1, columns, -1), right[None].expand(rows, -1, -1)], -1)
        angles = angles.flatten(0, 1)  # (n, d / 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b heads n d"]:
        a, b = x.chunk(2, -1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class TokenAttention(nn.Module):
    """Self-attention between tokens; queries and keys are normalised and get a gain (arXiv:2302.05442).

    Args:
        channels: size of a token.
        heads: attention heads.
        rows: rows of tokens.
        columns: tokens a row.
        fused: use torch's fused kernel for many tokens. It takes less memory but cannot be differentiated
            twice, which R1, R2 and WGAN-GP need in a discriminator.
    """

    def __init__(self, channels: int, heads: int, rows: int, columns: int, fused: bool = True) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.queries_keys_values = nn.Linear(channels, 3 * channels, bias=False)
        self.query_norm, self.key_norm = (RMSNorm(channels // heads) for _ in range(2))
        self.positions = RotaryPositions(rows, columns, channels // heads)
        self.out = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        parts = self.queries_keys_values(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        q, k = self.positions(self.query_norm(q)), self.positions(self.key_norm(k))
        if not self.fused or q.shape[2] <= _MAX_TOKENS_UNFUSED:
            logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            mixed = at_least_float32(logits).softmax(-1).to(v.dtype) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """A gated layer for each token: W3 (silu(W1 x) * W2 x) (arXiv:2002.05202)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 8 * (channels // 3)  # as many weights as a plain layer of four times the width
        self.gate_and_value = nn.Linear(channels, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        gate, value = self.gate_and_value(x).chunk(2, -1)
        return self.out(F.silu(gate) * value)


def check_transformer(
    name: str, resolution: int, aspect_ratio: float, patch: int, width: int, depth: int, heads: int
) -> tuple[int, int]:
    """Rows of tokens, and tokens a row.

    Args:
        name: of the class, for the message.
        resolution: height of the images, px.
        aspect_ratio: their width / their height.
        patch: side of a token's square, px.
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads.

    Raises:
        ValueError: the sizes do not fit each other.
    """
    if patch < 1 or resolution % patch:
        raise ValueError(f"{name}.patch {patch} must divide the resolution, {resolution}")
    columns = width_of(resolution // patch, aspect_ratio)
    if heads < 1 or width % (4 * heads):
        raise ValueError(f"{name}.width {width} must be a multiple of 4 times its {heads} heads")
    if depth < 1:
        raise ValueError(f"{name}.depth {depth} must be 1 or more")
    return resolution // patch, columns
