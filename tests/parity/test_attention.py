"""Both attentions against a softmax written out, on the plain and on the fused path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from imagen_pl.models.layers.attention import CrossAttention, SelfAttention
from tests.helpers.networks import awaken, text_features

pytestmark = pytest.mark.usefixtures("one_thread")


def _written_out(queries: Tensor, keys: Tensor, values: Tensor, log_temperature: Tensor) -> Tensor:
    """One head after the other: softmax(temperature sqrt(d) cos(q, k)) v, for one sample (n c), (m c)."""
    heads = log_temperature.shape[0]
    d = queries.shape[1] // heads
    out = []
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        q, k, v = queries[:, part], keys[:, part], values[:, part]
        cosine = (q @ k.T) / (q.norm(dim=1)[:, None] * k.norm(dim=1)[None])
        logits = log_temperature[head, 0, 0].exp() * d**0.5 * cosine
        weights = logits.exp()
        out.append(weights / weights.sum(1, keepdim=True) @ v)
    return torch.cat(out, dim=1)


def _pixels(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Normalised over the whole map, then one row a pixel."""
    centred = (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt()
    return (centred * norm.weight[:, None, None] + norm.bias[:, None, None]).flatten(1).T


@pytest.mark.parametrize(("side", "fused"), [(8, True), (17, True), (17, False)])
def test_self_attention_equals_the_written_out_softmax(side: int, fused: bool) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(8, heads=2, fused=fused)
    awaken(layer)
    x = torch.randn(2, 8, side, side)  # 17 x 17 pixels use the fused kernel

    out = layer(x)

    for sample, got in zip(x, out, strict=True):
        q, k, v = (_pixels(layer.norm, sample) @ layer.queries_keys_values.weight.T).chunk(3, 1)
        mixed = layer.out(_written_out(q, k, v, layer.log_temperature))
        torch.testing.assert_close(got, sample + mixed.T.reshape(sample.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [5, 300])
def test_cross_attention_equals_the_written_out_softmax(tokens: int) -> None:
    torch.manual_seed(0)
    layer = CrossAttention(8, text_dim=6, heads=2)
    awaken(layer)
    x, text = torch.randn(3, 8, 4, 4), text_features(3, tokens)

    out = layer(x, text.tokens, text.mask)

    for i, sample in enumerate(x):
        assert isinstance(layer.norm, nn.GroupNorm)
        q = _pixels(layer.norm, sample) @ layer.queries.weight.T
        words = torch.cat([layer.empty_word[0], text.tokens[i][text.mask[i]]])  # padding left out
        k, v = (words @ layer.keys_values.weight.T).chunk(2, 1)
        mixed = layer.out(_written_out(q, k, v, layer.log_temperature))
        torch.testing.assert_close(out[i], sample + mixed.T.reshape(sample.shape), rtol=1e-4, atol=1e-5)
