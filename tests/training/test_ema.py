"""The generator's moving average: its half-life against a scalar reference, and what it copies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.training.ema import GeneratorEMA
from imagen_pl.types import Growth
from tests.helpers.networks import small_generator, text_features

pytestmark = pytest.mark.usefixtures("one_thread")


def _fill(generator: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.fill_(value)


def _value(ema: GeneratorEMA) -> float:
    values = {
        float(v) for parameter in ema.generator.parameters() for v in (parameter.min(), parameter.max())
    }
    assert max(values) - min(values) < 1e-6, "every weight follows alike"
    return values.pop()


@pytest.fixture
def generator() -> StyleGenerator:
    return small_generator({4: 4}, text_attention_at=[], self_attention_at=[])


@pytest.mark.parametrize("batch_size", [1, 8, 50, 200, 1000])
def test_half_of_the_weight_is_lost_after_the_half_life(generator: StyleGenerator, batch_size: int) -> None:
    ema = GeneratorEMA(generator, halflife_kimg=1.0, ramp=1e9)
    _fill(ema.generator, 1.0)
    _fill(generator, 0.0)

    for seen in range(batch_size, 1001, batch_size):
        ema.update(generator, seen, batch_size)

    assert _value(ema) == pytest.approx(0.5, abs=1e-4)


def test_average_equals_a_scalar_reference(generator: StyleGenerator) -> None:
    ema = GeneratorEMA(generator, halflife_kimg=0.5, ramp=0.2)
    _fill(ema.generator, 3.0)
    reference, seen = 3.0, 0

    for step, batch_size in enumerate([16, 16, 32, 7, 64, 128, 512, 2, 2048, 64]):
        current = float(step % 3) - 1
        _fill(generator, current)
        seen += batch_size
        ema.update(generator, seen, batch_size)
        keep = 0.5 ** (batch_size / min(500.0, 0.2 * seen))
        reference = keep * reference + (1 - keep) * current
        assert _value(ema) == pytest.approx(reference, abs=1e-5), step


def test_ramp_drops_the_initial_weights_early(generator: StyleGenerator) -> None:
    def kept(ramp: float) -> float:
        ema = GeneratorEMA(generator, halflife_kimg=1000.0, ramp=ramp)
        _fill(ema.generator, 1.0)
        _fill(generator, 0.0)
        for seen in range(100, 2001, 100):
            ema.update(generator, seen, 100)
        return _value(ema)

    assert kept(ramp=0.05) < 1e-6
    assert kept(ramp=1e9) == pytest.approx(0.5 ** (2000 / 1e6), abs=1e-4)


def test_a_half_life_of_zero_copies(generator: StyleGenerator) -> None:
    ema = GeneratorEMA(generator, halflife_kimg=0.0)
    _fill(generator, 7.0)

    ema.update(generator, 64, 64)

    assert _value(ema) == 7.0


def test_buffers_are_copied_not_averaged(generator: StyleGenerator) -> None:
    ema = GeneratorEMA(generator, halflife_kimg=1000.0)
    generator.track(torch.randn(16, 5))

    ema.update(generator, 10_000_000, 64)

    assert generator.latent_mean.any()
    assert torch.equal(ema.generator.get_buffer("latent_mean"), generator.latent_mean)


def test_average_stays_in_evaluation_mode_without_gradients() -> None:
    generator = small_generator(noise=True, style_mixing=0.9)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("noise"):
                parameter.fill_(1.0)
    ema = GeneratorEMA(generator, halflife_kimg=1.0)
    ema.train()
    z, text = torch.randn(4, 5), text_features()

    assert generator.training
    assert not ema.training
    assert not any(module.training for module in ema.modules())
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert torch.equal(ema.generator(z, text, Growth(16)), ema.generator(z, text, Growth(16)))


def test_average_is_a_copy_of_the_generator(generator: StyleGenerator) -> None:
    ema = GeneratorEMA(generator, halflife_kimg=1.0)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    _fill(ema.generator, 5.0)

    ema.update(generator, 100, 100)

    assert all(torch.equal(before[name], tensor) for name, tensor in generator.state_dict().items())
    assert all(parameter.requires_grad for parameter in generator.parameters())
    shared = {p.data_ptr() for p in ema.parameters()} & {p.data_ptr() for p in generator.parameters()}
    assert not shared
