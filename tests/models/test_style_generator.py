"""StyleGenerator: growth, truncation, guidance, noise, style mixing, and the effect of captions."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.models.layers.resampling import upsample
from imagen_pl.types import Growth
from tests.helpers.networks import assert_blocks_share_nothing, awaken, small_generator, text_features

pytestmark = pytest.mark.usefixtures("one_thread")

OUTPUTS: tuple[Literal["sum", "last"], ...] = ("sum", "last")
WIDE = {4: 8, 8: 8, 16: 4, 32: 4, 64: 4}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("resolution", list(WIDE))
def test_every_resolution_gives_images_and_gradients(
    resolution: int, output: Literal["sum", "last"], latents: Tensor
) -> None:
    generator = small_generator(WIDE, output=output)
    awaken(generator)

    images = generator(latents, text_features(), Growth(resolution, 0.5))
    images.square().mean().backward()

    assert images.shape == (4, 3, resolution, resolution)
    assert images.dtype == torch.float32
    assert torch.isfinite(images).all()
    for at, block in generator.blocks().items():
        heard = at == resolution or (at < resolution and output == "sum")
        last_heard = at == resolution // 2  # "last" blends from the block below while it fades
        for name, parameter in block.named_parameters():
            if at > resolution:
                assert parameter.grad is None, f"{at} {name} lies beyond the growth"
            elif heard or last_heard or not name.startswith("to_rgb"):
                assert parameter.grad is not None, f"{at} {name} got no gradient"
                assert torch.isfinite(parameter.grad).all()
                assert parameter.grad.any(), f"{at} {name} has a gradient of zero"
    for name, parameter in generator.mapping.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("output", OUTPUTS)
def test_fade_interpolates_from_the_coarser_image(output: Literal["sum", "last"], latents: Tensor) -> None:
    generator = small_generator(output=output).eval()
    text = text_features()
    with torch.no_grad():
        coarse = generator(latents, text, Growth(8))
        silent, half, grown = (generator(latents, text, Growth(16, fade)) for fade in (0.0, 0.5, 1.0))

    torch.testing.assert_close(silent, upsample(coarse))
    torch.testing.assert_close(half, (silent + grown) / 2)
    assert not torch.allclose(silent, grown, atol=1e-2)


def test_without_growth_it_draws_the_largest(latents: Tensor) -> None:
    generator = small_generator().eval()

    assert torch.equal(
        generator(latents, text_features()), generator(latents, text_features(), Growth(16, 1.0))
    )


def test_works_at_1024_px() -> None:
    channels = {4: 4, 8: 4, 16: 4, 32: 4, 64: 2, 128: 2, 256: 1, 512: 1, 1024: 1}
    generator = StyleGenerator(channels, text_dim=6, latent_dim=5, style_dim=8).eval()

    with torch.no_grad():
        image = generator(torch.randn(1, 5), text_features(1))

    assert image.shape == (1, 3, 1024, 1024)
    assert torch.isfinite(image).all()


def test_lowest_resolution_can_be_any(latents: Tensor) -> None:
    generator = small_generator({16: 8, 32: 4}, text_attention_at=[], self_attention_at=[])

    assert generator.resolutions == (16, 32)
    assert generator(latents, text_features(), Growth(16)).shape == (4, 3, 16, 16)


def test_both_latent_and_words_change_the_picture(latents: Tensor) -> None:
    generator = small_generator().eval()
    text = text_features()

    with torch.no_grad():
        image = generator(latents, text)
        assert not torch.allclose(generator(latents.flip(0), text), image, atol=1e-2)
        assert not torch.allclose(generator(latents, text.roll()), image, atol=1e-2)


def test_tokens_matter_beside_the_pooled_vector(latents: Tensor) -> None:
    generator = small_generator().eval()
    awaken(generator)
    text = text_features()
    other = text_features()
    other.tokens = -text.tokens

    with torch.no_grad():
        assert not torch.allclose(generator(latents, text), generator(latents, other), atol=1e-3)


def test_samples_are_independent(latents: Tensor) -> None:
    generator = small_generator().eval()
    awaken(generator)
    text = text_features()

    with torch.no_grad():
        together = generator(latents, text)
        alone = torch.cat([generator(latents[i : i + 1], text[i : i + 1]) for i in range(4)])

    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_noise_is_for_training_alone(latents: Tensor) -> None:
    generator = small_generator(noise=True)
    awaken(generator)
    text = text_features()

    with torch.no_grad():
        generator.train()
        assert not torch.allclose(generator(latents, text), generator(latents, text), atol=1e-3)
        generator.eval()
        assert torch.equal(generator(latents, text), generator(latents, text))


def test_noise_starts_at_zero(latents: Tensor) -> None:
    generator = small_generator(noise=True)

    assert torch.equal(generator(latents, text_features()), generator(latents, text_features()))


def test_the_same_seed_gives_the_same_picture(latents: Tensor) -> None:
    generator = small_generator(noise=True, style_mixing=0.5)
    awaken(generator)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return generator(latents, text_features())

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_text_noise_is_for_training_alone(latents: Tensor) -> None:
    generator, plain = small_generator(text_noise=0.5), small_generator()
    awaken(generator)
    awaken(plain)
    text = text_features()

    with torch.no_grad():
        generator.train(), plain.train()
        assert not torch.allclose(generator(latents, text), generator(latents, text), atol=1e-3)
        assert torch.equal(plain(latents, text), plain(latents, text))
        assert torch.equal(generator.eval()(latents, text), plain.eval()(latents, text))


def test_style_mixing_changes_training_alone(latents: Tensor) -> None:
    mixing, plain = small_generator(style_mixing=1.0), small_generator()
    text = text_features()

    with torch.no_grad():
        grown = plain(latents, text)
        assert not torch.allclose(mixing(latents, text), grown, atol=1e-3)
        # The coarsest block keeps the image's own latent, so the crossover is never below the second.
        torch.testing.assert_close(mixing(latents, text, Growth(4)), plain(latents, text, Growth(4)))
        torch.testing.assert_close(mixing.eval()(latents, text), plain.eval()(latents, text))


def test_style_mixing_changes_the_given_share() -> None:
    generator = small_generator(style_mixing=0.25)
    z = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0))
    text = text_features(1)[torch.zeros(1000, dtype=torch.int64)]
    torch.manual_seed(1)
    with torch.no_grad():
        style = generator.mapping(z, text.pooled, generator.latent_mean)
        mixed, crossover = generator._mixed_style(style, text.pooled)

    share = float((mixed != style).any(1).float().mean())
    assert 0.2 < share < 0.3
    assert crossover in (8, 16)


def test_track_moves_the_mean_towards_the_latents() -> None:
    generator = small_generator(mean_decay=0.75)
    z = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
    mean = generator.mapping.latent(z).mean(0).detach()

    generator.track(z)
    torch.testing.assert_close(generator.latent_mean, 0.25 * mean)
    generator.track(z)
    torch.testing.assert_close(generator.latent_mean, (1 - 0.75**2) * mean)
    assert not generator.latent_mean.requires_grad
    assert "latent_mean" in generator.state_dict()


def test_only_the_direction_of_latents_counts() -> None:
    """z is normalised first (arXiv:1710.10196, appendix A.1), so no latent lies far outside."""
    generator = small_generator().eval()
    z, text = torch.randn(4, 5), text_features()

    torch.testing.assert_close(generator(3 * z, text), generator(z, text), rtol=1e-3, atol=1e-4)


def test_latents_are_the_style_without_mapping_layers() -> None:
    generator = small_generator(
        {4: 8}, mapping_layers=0, style_dim=5, text_attention_at=[], self_attention_at=[]
    )

    assert generator(torch.randn(2, 5), text_features(2)).shape == (2, 3, 4, 4)


def test_without_mapping_layers_the_style_may_have_another_size() -> None:
    generator = small_generator(
        {4: 8}, mapping_layers=0, style_dim=9, text_attention_at=[], self_attention_at=[]
    )
    generator.track(torch.randn(8, 5))

    assert generator(torch.randn(2, 5), text_features(2), truncation=0.5).shape == (2, 3, 4, 4)


def test_bfloat16_is_finite_and_near_float32(latents: Tensor) -> None:
    generator = small_generator(noise=False)
    awaken(generator)
    text = text_features()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = generator(latents, text, Growth(16, 0.5))
    low.mean().backward()

    assert low.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in generator.parameters() if p.grad is not None)
    with torch.no_grad():
        full = generator(latents, text, Growth(16, 0.5))
    assert (low - full).abs().mean() < 0.05 * full.abs().mean() + 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_attention_at": [8, 32]}, r"text_attention_at \[32\] is not among \[4, 8, 16\]"),
        ({"self_attention_at": [5]}, r"self_attention_at \[5\] is not among \[4, 8, 16\]"),
        ({"channels": {4: 8, 8: 6}}, "4 heads share evenly, not 6"),
        ({"channels": {4: 8, 16: 8}}, "16 follows 4"),
    ],
)
def test_invalid_settings_raise(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_generator(**settings)


def test_unknown_resolution_raises(latents: Tensor) -> None:
    with pytest.raises(ValueError, match=r"resolution 64 is not one of \(4, 8, 16\)"):
        small_generator()(latents, text_features(), Growth(64))


def test_blocks_are_by_resolution_and_share_nothing() -> None:
    assert_blocks_share_nothing(small_generator(), (4, 8, 16))
