"""Layers: attention's mask and its second derivative, resampling, starting weights, widths, precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from imagen_pl.models.layers.attention import CrossAttention, SelfAttention
from imagen_pl.models.layers.initialisation import activation, conv, linear
from imagen_pl.models.layers.precision import at_least_float32
from imagen_pl.models.layers.resampling import downsample, fade_in, upsample
from imagen_pl.models.layers.widths import check_channels
from tests.helpers.networks import awaken, text_features

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def words() -> CrossAttention:
    torch.manual_seed(0)
    layer = CrossAttention(8, text_dim=6)
    awaken(layer)
    return layer


def test_padding_tokens_change_nothing(words: CrossAttention) -> None:
    x, text = torch.randn(4, 8, 4, 4), text_features(4)
    rubbish = torch.where(text.mask[:, :, None], text.tokens, torch.full_like(text.tokens, 1e3))
    longer = torch.cat([rubbish, rubbish], dim=1)
    longer_mask = torch.cat([text.mask, torch.zeros_like(text.mask)], dim=1)

    out = words(x, text.tokens, text.mask)

    torch.testing.assert_close(words(x, rubbish, text.mask), out)
    torch.testing.assert_close(words(x, longer, longer_mask), out)


def test_real_tokens_change_the_map(words: CrossAttention) -> None:
    x, text = torch.randn(4, 8, 4, 4), text_features(4)

    assert not torch.allclose(words(x, text.tokens, text.mask), words(x, -text.tokens, text.mask))


@pytest.mark.parametrize("tokens", [5, 300])
def test_empty_caption_gives_finite_output_and_gradients(words: CrossAttention, tokens: int) -> None:
    x = torch.randn(2, 8, 4, 4, requires_grad=True)

    out = words(x, torch.zeros(2, tokens, 6), torch.zeros(2, tokens, dtype=torch.bool))
    out.sum().backward()

    assert torch.isfinite(out).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in words.parameters() if p.grad is not None)


def test_attention_starts_as_the_identity() -> None:
    x, text = torch.randn(2, 8, 4, 4), text_features(2)

    assert torch.equal(SelfAttention(8)(x), x)
    assert torch.equal(CrossAttention(8, 6)(x, text.tokens, text.mask), x)


def test_attention_refuses_channels_not_divisible_by_heads() -> None:
    with pytest.raises(ValueError, match="4 heads share evenly, not 6"):
        SelfAttention(6)
    with pytest.raises(ValueError, match="4 heads share evenly, not 10"):
        CrossAttention(10, 6)


def test_attention_without_the_fused_kernel_can_be_differentiated_twice_at_any_size() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(4, fused=False)
    awaken(layer)
    x = torch.randn(1, 4, 20, 20, requires_grad=True)

    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()

    assert layer.queries_keys_values.weight.grad is not None
    assert torch.isfinite(layer.queries_keys_values.weight.grad).all()


def test_attention_s_second_derivative_is_finite_where_the_map_is_flat() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(4, fused=False)
    awaken(layer)
    torch.nn.init.zeros_(layer.norm.bias)
    x = torch.zeros(1, 4, 4, 4, requires_grad=True)

    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()

    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize("side", [4, 20])
def test_attention_in_bfloat16_is_near_float32(side: int) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(8)
    awaken(layer)
    x = torch.randn(2, 8, side, side)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x.bfloat16())

    torch.testing.assert_close(low.float(), layer(x), rtol=0.05, atol=0.05)


def test_resampling_keeps_the_mean_and_flat_maps() -> None:
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(downsample(x).mean((2, 3)), x.mean((2, 3)))
    flat = torch.full((1, 3, 4, 4), 0.7)
    torch.testing.assert_close(upsample(flat), torch.full((1, 3, 8, 8), 0.7))
    torch.testing.assert_close(downsample(flat), torch.full((1, 3, 2, 2), 0.7))
    # Edge pixels repeat beyond the border, so bilinear doubling keeps the mean as well.
    torch.testing.assert_close(upsample(x).mean((2, 3)), x.mean((2, 3)))


def test_upsampling_is_bilinear() -> None:
    row = torch.tensor([0.0, 4.0]).expand(1, 1, 2, 2)

    assert upsample(row)[0, 0, 0].tolist() == [0, 1, 3, 4]


def test_fade_in_interpolates_from_the_coarse_to_the_full_image() -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    coarse = upsample(downsample(images))

    assert torch.equal(fade_in(images, 1.0), images)
    torch.testing.assert_close(fade_in(images, 0.0), coarse)
    torch.testing.assert_close(fade_in(images, 0.25), 0.75 * coarse + 0.25 * images)


@pytest.mark.parametrize("make", [conv, linear])
def test_layers_keep_the_variance_through_the_activation(make: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    if make is conv:
        x = torch.randn(4, 64, 16, 16)
        out = activation()(conv(64, 64, 3)(x))[:, :, 1:-1, 1:-1]
    else:
        x = torch.randn(512, 256)
        out = activation()(linear(256, 256)(x))

    assert 0.85 < float(out.detach().square().mean()) < 1.15


def test_zero_initialised_layers_give_zero() -> None:
    assert not conv(4, 4, 3, zero=True)(torch.randn(1, 4, 4, 4)).any()
    assert not linear(4, 4, zero=True)(torch.randn(1, 4)).any()


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({}, "channels is empty"),
        ({2: 8, 4: 8}, "resolution 2 is not a power of two from 4 to 1024"),
        ({12: 8}, "resolution 12 is not a power of two"),
        ({1024: 8, 2048: 8}, "resolution 2048 is not a power of two from 4 to 1024"),
        ({4: 8, 16: 8}, "16 follows 4, but each resolution is twice the one before"),
        ({8: 8, 4: 8}, "4 follows 8"),
    ],
)
def test_invalid_channels_raise(channels: dict[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_channels(channels)


def test_precision_is_raised_and_never_lowered() -> None:
    for given, got in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert at_least_float32(torch.zeros(1, dtype=given)).dtype == got
