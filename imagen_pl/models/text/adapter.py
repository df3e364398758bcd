"""A trainable adapter on top of a frozen text encoder.

Axes: b batch, t tokens, s sequence (the pooled vector, then the tokens), c channels, h hidden.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.models.layers.attention import WordAttention
from imagen_pl.models.layers.initialisation import activation, linear
from imagen_pl.types import TextFeatures


class TextAdapter(nn.Module):
    """Adapts a frozen encoder's vectors to one network (arXiv:1902.00751, section 2.1).

    x + up(activation(down(norm(x)))), with separate weights for the tokens and for the pooled vector. It
    starts as the identity, is trained with the network that owns it, and is saved with it. The encoder
    stays unchanged, so the cache of its features stays valid. Vectors that the network does not read give no
    gradients: without `attention_heads`, the adapter of a discriminator that reads the pooled vector alone
    does not train its weights for the tokens.

    Args:
        text_dim: size of the text encoder's vectors.
        hidden_dim: size of the bottleneck; a multiple of `attention_heads`.
        attention_heads: heads of a self-attention between the tokens and the pooled vector, inside the
            bottleneck; 0 leaves it out.
    """

    def __init__(self, text_dim: int = 384, hidden_dim: int = 64, attention_heads: int = 0) -> None:
        super().__init__()
        self.text_dim = text_dim
        self.pooled, self.tokens = Bottleneck(text_dim, hidden_dim), Bottleneck(text_dim, hidden_dim)
        self.attention = WordAttention(hidden_dim, attention_heads) if attention_heads else None

    def check(self, text_dim: int) -> None:
        """Raise ValueError unless it is made for vectors of this size."""
        if self.text_dim != text_dim:
            raise ValueError(
                f"text_adapter.init_args.text_dim is {self.text_dim}, but its network's text_dim is "
                f"{text_dim}: set it to {text_dim}"
            )

    def forward(self, text: TextFeatures) -> TextFeatures:
        """Features of the same shapes; rows of padding stay zero."""
        hidden = torch.cat(
            [self.pooled.down_project(text.pooled[:, None]), self.tokens.down_project(text.tokens)], dim=1
        )
        if self.attention is not None:
            # The pooled vector is never padding, so the attention of an empty caption has a key.
            real = torch.cat([text.mask.new_ones(len(text), 1), text.mask], dim=1)
            hidden = self.attention(hidden, real)
        pooled = text.pooled + self.pooled.up_project(hidden[:, 0])
        tokens = text.tokens + self.tokens.up_project(hidden[:, 1:]).masked_fill(~text.mask[..., None], 0)
        return TextFeatures(tokens, text.mask, pooled)


class Bottleneck(nn.Module):
    """The projection to the hidden size, and the one back, which starts at zero."""

    def __init__(self, text_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm, self.down = nn.LayerNorm(text_dim), linear(text_dim, hidden_dim)
        self.up = linear(hidden_dim, text_dim, zero=True)
        self.activation = activation()

    def down_project(self, x: Float[Tensor, "b s c"]) -> Float[Tensor, "b s h"]:
        return self.activation(self.down(self.norm(x)))

    def up_project(self, hidden: Float[Tensor, "b *s h"]) -> Float[Tensor, "b *s c"]:
        return self.up(hidden)
