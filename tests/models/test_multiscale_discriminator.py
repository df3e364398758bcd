"""MultiscaleDiscriminator: growth, heads, captions, minibatch stddev, and its two steps."""

from __future__ import annotations

import pytest
import torch

from imagen_pl.models.discriminators.multiscale import MultiscaleDiscriminator
from imagen_pl.models.layers.resampling import downsample
from imagen_pl.types import Growth
from tests.helpers.networks import assert_blocks_share_nothing, awaken, small_discriminator, text_features

pytestmark = pytest.mark.usefixtures("one_thread")

WIDE = {4: 8, 8: 8, 16: 4, 32: 4, 64: 4}


def _images(resolution: int, b: int = 4) -> torch.Tensor:
    return torch.randn(b, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("resolution", list(WIDE))
def test_every_resolution_gives_logits_and_gradients(resolution: int) -> None:
    discriminator = small_discriminator(WIDE, heads_at=[], minibatch_stddev=2)
    awaken(discriminator)
    images = _images(resolution).requires_grad_()

    logits = discriminator(images, text_features(), Growth(resolution, 0.5))
    logits.square().sum().backward()

    assert logits.shape == (4, 1)
    assert logits.dtype == torch.float32
    assert images.grad is not None
    assert images.grad.flatten(1).any(1).all()
    for at, block in discriminator.blocks().items():
        for name, parameter in block.named_parameters():
            # During a fade, only the input layer of the block below is used besides the newest one.
            if at > resolution or (at < resolution // 2 and name.startswith("from_rgb")):
                assert parameter.grad is None, f"{at} {name}"
            else:
                assert parameter.grad is not None, f"{at} {name}"
                assert torch.isfinite(parameter.grad).all()
                assert parameter.grad.any(), f"{at} {name}"
    assert all(p.grad is not None and p.grad.any() for p in discriminator.main_head.parameters())


def test_fade_interpolates_from_the_coarser_features() -> None:
    discriminator = small_discriminator(heads_at=[])
    text, images = text_features(), _images(16)
    with torch.no_grad():
        coarse = discriminator(downsample(images), text, Growth(8))
        silent, nearly, grown = (discriminator(images, text, Growth(16, fade)) for fade in (0.0, 1 - 1e-6, 1))

    torch.testing.assert_close(silent, coarse)
    torch.testing.assert_close(nearly, grown, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(silent, grown, atol=1e-3)


def test_fade_has_no_effect_at_the_smallest_resolution() -> None:
    discriminator = small_discriminator()
    text, images = text_features(), _images(4)

    assert torch.equal(discriminator(images, text, Growth(4, 0.3)), discriminator(images, text, Growth(4)))


@pytest.mark.parametrize(("resolution", "heads"), [(4, 1), (8, 2), (16, 3)])
def test_each_active_scale_has_its_head(resolution: int, heads: int) -> None:
    discriminator = small_discriminator(heads_at=[16, 8])
    awaken(discriminator)

    logits = discriminator(_images(resolution), text_features(), Growth(resolution))

    assert logits.shape == (4, heads)
    assert all(not torch.allclose(logits[:, 0], logits[:, k]) for k in range(1, heads))


def test_features_then_logits_equal_forward() -> None:
    discriminator = small_discriminator(minibatch_stddev=4)
    text, images, growth = text_features(), _images(16), Growth(16, 0.7)

    seen = discriminator.extract_features(images, growth)

    assert torch.equal(discriminator.logits(seen, text), discriminator(images, text, growth))
    assert list(seen.maps) == [16, 8, 4]
    assert all(features.shape[-1] == resolution for resolution, features in seen.maps.items())
    assert seen.final.shape == (4, discriminator.final_dim)


def test_features_can_be_reused_for_other_captions() -> None:
    discriminator = small_discriminator()
    text, images = text_features(), _images(16)

    seen = discriminator.extract_features(images)

    rolled = discriminator.logits(seen, text.roll())
    assert torch.equal(rolled, discriminator(images, text.roll()))
    assert (rolled - discriminator.logits(seen, text)).abs().min(0).values.max() > 1e-4


def test_the_caption_reaches_every_head() -> None:
    discriminator = small_discriminator()
    awaken(discriminator)
    text = text_features()
    text.pooled.requires_grad_()

    logits = discriminator(_images(16), text)

    for k in range(3):
        (slope,) = torch.autograd.grad(logits[:, k].sum(), text.pooled, retain_graph=True)
        assert slope.any(1).all(), f"head {k}"


def test_projection_is_the_papers_formula() -> None:
    """psi(x) + <V text, x> / sqrt(f), arXiv:1802.05637, eq. 3."""
    head = small_discriminator().main_head
    x, pooled = torch.randn(3, 8), torch.randn(3, 6)

    out = head(x, pooled)

    for i in range(3):
        match = torch.dot(head.text.weight @ pooled[i] + head.text.bias, x[i]) / 8**0.5
        torch.testing.assert_close(
            out[i], torch.dot(head.unconditional.weight[0], x[i]) + head.unconditional.bias[0] + match
        )


def test_images_are_independent_without_minibatch_stddev() -> None:
    text, images = text_features(), _images(16)
    others = torch.cat([images[:1], 5 * images[1:]])

    with torch.no_grad():
        for group, equal in ((0, True), (4, False)):
            discriminator = small_discriminator(minibatch_stddev=group)
            alone, among = discriminator(images, text)[0], discriminator(others, text)[0]
            assert torch.allclose(alone, among, rtol=1e-4, atol=1e-5) == equal


def test_minibatch_stddev_detects_a_collapsed_batch() -> None:
    discriminator = small_discriminator(minibatch_stddev=4, heads_at=[])
    text = text_features(1)[torch.zeros(4, dtype=torch.int64)]
    one = _images(16, 1)
    collapsed = one.expand(4, -1, -1, -1)
    varied = torch.cat([one, -one, 2 * one, -2 * one])

    with torch.no_grad():
        assert not torch.allclose(
            discriminator(collapsed, text)[0], discriminator(varied, text)[0], atol=1e-3
        )


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_minibatch_stddev_takes_any_batch(batch: int) -> None:
    logits = small_discriminator(minibatch_stddev=4)(_images(16, batch), text_features(batch))

    assert torch.isfinite(logits).all()


def test_works_at_1024_px() -> None:
    channels = {4: 4, 8: 4, 16: 4, 32: 4, 64: 2, 128: 2, 256: 1, 512: 1, 1024: 1}
    discriminator = MultiscaleDiscriminator(channels, text_dim=6, final_dim=8)

    with torch.no_grad():
        logits = discriminator(_images(1024, 1), text_features(1))

    assert torch.isfinite(logits).all()


def test_bfloat16_is_finite_and_near_float32() -> None:
    discriminator = small_discriminator(minibatch_stddev=2)
    awaken(discriminator)
    text, images = text_features(), _images(16)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = discriminator(images, text, Growth(16, 0.5))
    low.sum().backward()

    assert low.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in discriminator.parameters() if p.grad is not None)
    torch.testing.assert_close(low, discriminator(images, text, Growth(16, 0.5)), rtol=0.1, atol=0.1)


def test_images_of_another_size_raise() -> None:
    with pytest.raises(ValueError, match="images of 8 px were given at growth 16 px"):
        small_discriminator()(_images(8), text_features(), Growth(16))
    with pytest.raises(ValueError, match="images of 4 px were given at growth 16 px"):
        small_discriminator()(_images(4), text_features())


def test_unknown_resolution_raises() -> None:
    with pytest.raises(ValueError, match=r"resolution 64 is not one of \(4, 8, 16\)"):
        small_discriminator()(_images(64), text_features(), Growth(64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads_at": [32]}, r"heads_at \[32\] is not among \[4, 8, 16\]"),
        ({"self_attention_at": [2]}, r"self_attention_at \[2\] is not among \[4, 8, 16\]"),
        ({"channels": {8: 8, 4: 8}}, "4 follows 8"),
    ],
)
def test_invalid_settings_raise(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_discriminator(**settings)


def test_blocks_are_by_resolution_and_share_nothing() -> None:
    assert_blocks_share_nothing(small_discriminator(), (4, 8, 16))
