"""The text adapter: the identity at first, then trained with each network, saved and averaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen_pl.losses.gradient_penalties import MatchingAwarePenalty
from imagen_pl.models.text.adapter import TextAdapter
from imagen_pl.training.ema import GeneratorEMA
from imagen_pl.training.manual_optimization import SHARED, ManualOptimization
from imagen_pl.types import TextFeatures
from tests.helpers.networks import TEXT_DIM, awaken, small_discriminator, small_generator, text_features
from tests.helpers.training import SaveAt, assert_same, tiny_gan, train, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")


def adapter(heads: int = 2, awake: bool = True) -> TextAdapter:
    torch.manual_seed(4)
    made = TextAdapter(TEXT_DIM, hidden_dim=8, attention_heads=heads)
    if awake:
        awaken(made)
    return made


def same(a: TextFeatures, b: TextFeatures) -> bool:
    return all(torch.equal(x, y) for x, y in ((a.tokens, b.tokens), (a.pooled, b.pooled), (a.mask, b.mask)))


@pytest.mark.parametrize("heads", [0, 2])
def test_adapter_starts_as_the_identity(heads: int) -> None:
    text = text_features(4)

    assert same(adapter(heads, awake=False)(text), text)
    changed = adapter(heads)(text)
    assert not torch.equal(changed.pooled, text.pooled)
    assert (changed.tokens != text.tokens).any(2).equal(text.mask)


@pytest.mark.parametrize("heads", [0, 2])
def test_networks_with_a_new_adapter_equal_those_without(heads: int) -> None:
    text, images = text_features(4), torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    generators = [small_generator(), small_generator(text_adapter=adapter(heads, awake=False))]
    discriminators = [small_discriminator(), small_discriminator(text_adapter=adapter(heads, awake=False))]
    for networks in (generators, discriminators):
        networks[1].load_state_dict(networks[0].state_dict(), strict=False)

    assert torch.equal(generators[0](z, text), generators[1](z, text))
    assert torch.equal(discriminators[0](images, text), discriminators[1](images, text))
    for network in (generators[1], discriminators[1]):
        awaken(network.text_adapter)  # type: ignore[arg-type]
    assert not torch.allclose(generators[0](z, text), generators[1](z, text))
    assert not torch.allclose(discriminators[0](images, text), discriminators[1](images, text))


def test_padding_changes_nothing_and_stays_zero() -> None:
    text, made = text_features(4), adapter()
    rubbish = torch.where(text.mask[:, :, None], text.tokens, torch.full_like(text.tokens, 1e3))
    longer = TextFeatures(
        torch.cat([rubbish, rubbish], dim=1),
        torch.cat([text.mask, torch.zeros_like(text.mask)], dim=1),
        text.pooled,
    )

    plain, padded = made(text), made(longer)

    torch.testing.assert_close(padded.pooled, plain.pooled)
    torch.testing.assert_close(padded.tokens[:, :5][text.mask], plain.tokens[text.mask])
    assert not plain.tokens[~text.mask].any()


def test_empty_caption_gives_finite_output_and_gradients() -> None:
    text = TextFeatures(
        torch.zeros(2, 3, TEXT_DIM), torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, TEXT_DIM)
    )
    made = adapter()

    out = made(text)
    (out.pooled.sum() + out.tokens.sum()).backward()

    assert torch.isfinite(out.pooled).all()
    assert not out.tokens.any()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


@pytest.mark.parametrize(("heads", "mixes"), [(0, False), (2, True)])
def test_attention_mixes_tokens(heads: int, mixes: bool) -> None:
    text, made = text_features(2), adapter(heads)  # the second caption has two tokens
    other = TextFeatures(text.tokens.clone(), text.mask, text.pooled)
    other.tokens[1, 0] *= -1

    before, after = made(text), made(other)

    assert torch.equal(before.pooled[1], after.pooled[1]) is not mixes
    assert torch.equal(before.tokens[1, 1], after.tokens[1, 1]) is not mixes
    assert torch.equal(before.pooled[0], after.pooled[0])  # another caption


@pytest.mark.parametrize("heads", [0, 2])
def test_a_penalty_on_the_caption_goes_through_it(heads: int) -> None:
    made = adapter(heads).double()
    text = text_features(2, dtype=torch.float64)
    pooled = text.pooled.requires_grad_()

    def summed(x: Tensor) -> Tensor:
        return made(TextFeatures(text.tokens, text.mask, x)).pooled.square().sum()

    assert torch.autograd.gradcheck(summed, (pooled,))
    assert torch.autograd.gradgradcheck(summed, (pooled,))
    discriminator = small_discriminator(text_adapter=adapter(heads))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    MatchingAwarePenalty(2.0)(discriminator, images, images, text_features(2)).sum().backward()
    up = discriminator.text_adapter.pooled.up.weight  # type: ignore[union-attr]
    assert up.grad is not None
    assert up.grad.any()


def test_adapter_fits_what_frozen_features_cannot() -> None:
    """A frozen head can separate similar captions once the adapter has moved their vectors."""
    text = text_features(4)
    text.pooled = text.pooled[:1] + 0.3 * text.pooled
    made = adapter(heads=0, awake=False)
    reader = nn.Linear(TEXT_DIM, 4).requires_grad_(False)
    optimizer, own = torch.optim.Adam(made.parameters(), lr=2e-2), torch.arange(4)

    def loss() -> Tensor:
        return F.cross_entropy(reader(made(text).pooled), own)

    before = float(loss().detach())
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    assert before > 1
    assert float(loss().detach()) < 0.1


def test_adapter_is_in_no_block_and_in_the_moving_average() -> None:
    generator = small_generator(text_adapter=adapter())
    own = {id(p) for p in generator.text_adapter.parameters()}  # type: ignore[union-attr]
    groups = ManualOptimization.by_block(generator, "generator")
    assert own <= {id(p) for group in groups if group["block"] == SHARED for p in group["params"]}
    assert not any(id(p) in own for block in generator.blocks().values() for p in block.parameters())

    ema = GeneratorEMA(generator, halflife_kimg=0.0)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(1)
    ema.update(generator, images_seen=8, batch_size=8)
    assert_same(dict(ema.generator.state_dict()), dict(generator.state_dict()))
    assert any(name.startswith("text_adapter.") for name in ema.generator.state_dict())


@pytest.mark.parametrize("network", [small_generator, small_discriminator])
def test_other_text_dim_raises(network: type) -> None:
    message = r"text_adapter.init_args.text_dim is 384, but its network's text_dim is 6: set it to 6"
    with pytest.raises(ValueError, match=message):
        network(text_adapter=TextAdapter())


def test_adapter_trains_in_both_networks_and_resumes(tmp_path: Path) -> None:
    def made() -> dict[str, TextAdapter]:
        torch.manual_seed(0)
        return {"text_adapter": TextAdapter(16, hidden_dim=8, attention_heads=2)}

    def gan():  # type: ignore[no-untyped-def]
        return tiny_gan(generator={**made(), "text_attention_at": [8]}, discriminator=made())

    whole = gan()
    before = weights_of(whole)
    train(whole, 96, [SaveAt({48: tmp_path / "48.ckpt"})])
    for network in ("generator", "discriminator", "ema.generator"):
        for part in ("pooled.up", "pooled.down", "tokens.down"):  # a discriminator reads no tokens itself
            name = f"{network}.text_adapter.{part}.weight"
            assert not torch.equal(before[name], whole.state_dict()[name]), name
    resumed = gan()
    train(resumed, 96, ckpt_path=tmp_path / "48.ckpt")
    assert_same(dict(resumed.state_dict()), dict(whole.state_dict()))
