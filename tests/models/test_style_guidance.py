"""Truncation and guidance of StyleGenerator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imagen_pl.models.text.adapter import TextAdapter
from imagen_pl.types import TextFeatures
from tests.helpers.networks import TEXT_DIM, awaken, small_generator, text_features

pytestmark = pytest.mark.usefixtures("one_thread")


def test_truncation_to_zero_leaves_only_the_caption(latents: Tensor) -> None:
    generator = small_generator().eval()
    generator.track(torch.randn(64, 5, generator=torch.Generator().manual_seed(1)))
    one_caption, captions = text_features(1)[torch.zeros(4, dtype=torch.int64)], text_features(4)

    with torch.no_grad():
        alike = generator(latents, one_caption, truncation=0.0)
        apart = generator(latents, captions, truncation=0.0)
        spread = [float(generator(latents, one_caption, truncation=t).std(0).mean()) for t in (0.0, 0.5, 1.0)]

    torch.testing.assert_close(alike, alike[:1].expand(4, -1, -1, -1))
    assert apart.std(0).mean() > 1e-2
    assert spread[0] < 1e-6 < spread[1] < spread[2]


def test_latent_gain_spreads_the_samples_of_a_caption(latents: Tensor) -> None:
    """A gain of 4 and a truncation of 0.25 cancel, and truncation to zero still leaves only the caption."""
    plain, spread = small_generator().eval(), small_generator(latent_gain=4.0).eval()
    plain.track(torch.randn(64, 5, generator=torch.Generator().manual_seed(1)))
    spread.load_state_dict(plain.state_dict())
    text = text_features(1)[torch.zeros(4, dtype=torch.int64)]
    with torch.no_grad():
        torch.testing.assert_close(spread(latents, text, truncation=0.25), plain(latents, text))
        assert spread(latents, text).std(0).mean() > 1.5 * plain(latents, text).std(0).mean()
        assert spread(latents, text, truncation=0.0).std(0).max() < 1e-6


def test_latent_gain_must_be_positive() -> None:
    with pytest.raises(ValueError, match="latent_gain 0 must be more than 0"):
        small_generator(latent_gain=0)


@pytest.mark.parametrize("adapted", [False, True])
def test_guidance_of_one_equals_no_guidance_and_reads_no_other_caption(
    latents: Tensor, adapted: bool
) -> None:
    generator = small_generator(text_adapter=TextAdapter(TEXT_DIM, 8) if adapted else None).eval()
    awaken(generator)
    mapped = []
    generator.mapping.register_forward_hook(lambda *_: mapped.append(1))

    with torch.no_grad():
        plain = generator(latents, text_features())
        assert torch.equal(
            generator(latents, text_features(), None, 1.0, 1.0, text_features(1, seed=9)), plain
        )
        assert len(mapped) == 2  # one pass each
        assert not torch.allclose(
            generator(latents, text_features(), guidance=1.5, unconditional_text=text_features(1, seed=9)),
            plain,
        )


def test_guidance_extrapolates_from_the_mean_unconditional_style(latents: Tensor) -> None:
    generator = small_generator(text_adapter=TextAdapter(TEXT_DIM, 8)).eval()
    awaken(generator)
    text, others = text_features(4), text_features(3, seed=9)
    styles = []
    generator.first_map.register_forward_pre_hook(lambda _, given: styles.append(given[0]))

    def style(text: TextFeatures, **settings: Any) -> Tensor:
        with torch.no_grad():
            generator(latents, text, **settings)
        return styles.pop()

    plain = style(text)
    mean = torch.stack([style(others[torch.full((4,), row)]) for row in range(3)]).mean(0)
    for guidance in (0.0, 0.5, 1.5, 3.0):
        expected = mean + guidance * (plain - mean)
        torch.testing.assert_close(style(text, guidance=guidance, unconditional_text=others), expected)
    truncated = style(others[torch.zeros(4, dtype=torch.int64)], truncation=0.5)
    found = style(text, truncation=0.5, guidance=0.0, unconditional_text=others[:1])
    torch.testing.assert_close(found, truncated)  # with the same, truncated latents


def test_guidance_zero_leaves_only_the_tokens(latents: Tensor) -> None:
    """At 0 the style is that of `unconditional_text`; attention still reads the caption's own tokens."""
    generator, text, other = small_generator().eval(), text_features(4), text_features(1, seed=9)
    awaken(generator)
    same_tokens = text_features(4)
    same_tokens.pooled = -text.pooled

    with torch.no_grad():
        drawn = generator(latents, text, guidance=0.0, unconditional_text=other)
        assert torch.equal(generator(latents, same_tokens, guidance=0.0, unconditional_text=other), drawn)
        assert not torch.allclose(
            generator(latents, text.roll(), guidance=0.0, unconditional_text=other), drawn
        )


def test_guidance_without_unconditional_text_raises(latents: Tensor) -> None:
    with pytest.raises(ValueError, match="give unconditional_text"):
        small_generator()(latents, text_features(), guidance=2.0)
