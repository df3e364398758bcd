"""Networks of images that are not square, or have alpha: shapes, growth, fade, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.losses.gradient_penalties import R1
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.discriminators.joint import JointDiscriminator
from imagen_pl.models.discriminators.projected import ProjectedDiscriminator
from imagen_pl.models.discriminators.r3gan import R3GANDiscriminator
from imagen_pl.models.discriminators.transformer import TransformerDiscriminator
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.r3gan import R3GANGenerator
from imagen_pl.models.generators.transformer import TransformerGenerator
from imagen_pl.models.layers.resampling import downsample, fade_in, upsample
from imagen_pl.models.layers.transformer import RotaryPositions
from imagen_pl.models.pretrained.backbones import normalised
from imagen_pl.models.style_encoder import StyleEncoder
from imagen_pl.types import Growth
from tests.helpers.fakes import TinyBackbone, TinyText
from tests.helpers.networks import TEXT_DIM, awaken, small_discriminator, small_generator, text_features
from tests.helpers.training import adam

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = pytest.mark.parametrize(("ratio", "channels"), [(1.5, 3), (0.75, 4), (2.0, 4)])
Pair = tuple[Generator, Discriminator]


def style(**shape: Any) -> Pair:
    return small_generator(**shape), small_discriminator(**shape)


def r3gan(**shape: Any) -> Pair:
    channels = {4: 32, 8: 32, 16: 16}
    return (
        R3GANGenerator(channels, TEXT_DIM, 5, 8, 1, **shape),
        R3GANDiscriminator(channels, TEXT_DIM, 8, 1, **shape),
    )


def transformer(**shape: Any) -> Pair:
    sizes: dict[str, Any] = {"resolution": 16, "patch": 4, "width": 16, "depth": 2, "heads": 2}
    sizes["text_dim"] = TEXT_DIM
    return (
        TransformerGenerator(**sizes, latent_dim=5, noise=[0.5, 0.0], **shape),
        TransformerDiscriminator(**sizes, images=2, **shape),
    )


@SHAPES
@pytest.mark.parametrize("pair", [style, r3gan, transformer])
def test_networks_draw_and_judge_the_shape(pair: Callable[..., Pair], ratio: float, channels: int) -> None:
    generator, discriminator = pair(aspect_ratio=ratio, image_channels=channels)
    z, text = torch.randn(4, generator.latent_dim), text_features()
    images = generator.eval()(z, text)
    assert images.shape == (4, channels, 16, 16 * ratio)

    joined = images.repeat(1, discriminator.images_per_sample, 1, 1)
    features = discriminator.extract_features(joined)
    for height, feature_map in features.maps.items():
        assert feature_map.shape[1] == discriminator.map_channels[height]
        assert feature_map.shape[2:] == (height, height * ratio)
    logits = discriminator.logits(features, text)
    (-logits.mean()).backward()
    for network in (generator, discriminator):
        assert network.aspect_ratio == ratio
        assert network.image_channels == channels
        assert any(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("pair", [style, r3gan, transformer])
def test_a_discriminator_refuses_another_shape(pair: Callable[..., Pair]) -> None:
    _, discriminator = pair(aspect_ratio=1.5)
    square = torch.randn(2, 3 * discriminator.images_per_sample, 16, 16)
    with pytest.raises(ValueError, match=r"images of 16 px were given at growth 16 px, aspect ratio 1.5"):
        discriminator.extract_features(square)


@SHAPES
def test_growing_networks_have_the_shape_at_every_stage_and_fade(ratio: float, channels: int) -> None:
    generator, discriminator = style(aspect_ratio=ratio, image_channels=channels)
    awaken(generator)
    z, text = torch.randn(4, 5), text_features()
    for resolution in (4, 8, 16):
        images = generator(z, text, Growth(resolution))
        assert images.shape == (4, channels, resolution, resolution * ratio)
        assert discriminator(images, text, Growth(resolution)).shape[0] == 4
    coarse, faded = generator(z, text, Growth(8)), generator(z, text, Growth(16, 0.0))
    torch.testing.assert_close(faded, upsample(coarse))
    real = torch.rand(4, channels, 16, int(16 * ratio))
    torch.testing.assert_close(fade_in(real, 0.0), upsample(downsample(real)))
    unfaded = discriminator.extract_features(real, Growth(16, 0.0)).final
    torch.testing.assert_close(unfaded, discriminator.extract_features(downsample(real), Growth(8)).final)


def test_penalties_differentiate_images_of_any_shape() -> None:
    for pair in (style, r3gan, transformer):
        _, discriminator = pair(aspect_ratio=1.5, image_channels=4)
        real = torch.randn(4, 4 * discriminator.images_per_sample, 16, 24)
        assert R1(1.0)(discriminator, real, real, text_features()).shape == (4,)


@pytest.mark.parametrize("pair", [style, r3gan])
def test_a_width_that_is_not_whole_is_refused(pair: Callable[..., Pair]) -> None:
    with pytest.raises(UserError, match=r"aspect_ratio 1.3: images of 4 px .* 1.25 or 1.5"):
        pair(aspect_ratio=1.3)


def test_a_transformer_needs_whole_patches() -> None:
    transformer(aspect_ratio=1.25)
    with pytest.raises(UserError, match=r"aspect_ratio 1.1"):
        transformer(aspect_ratio=1.1)


def test_rotary_positions_are_those_of_rows_and_columns() -> None:
    wide, square = RotaryPositions(2, 3, 8), RotaryPositions(3, 3, 8)
    assert torch.equal(wide.cos, square.cos.unflatten(0, (3, 3))[:2].flatten(0, 1))
    assert torch.equal(wide.sin, square.sin.unflatten(0, (3, 3))[:2].flatten(0, 1))


# ---------------------------------------------------------------------- frozen networks


def test_frozen_networks_see_alpha_on_white_and_any_shape() -> None:
    images = torch.rand(2, 4, 16, 24) * 2 - 1
    seen = normalised(images, 8, ((0.5,) * 3, (0.5,) * 3))
    assert seen.shape == (2, 3, 8, 8)
    clear = torch.cat([torch.full((1, 3, 8, 8), -1.0), torch.full((1, 1, 8, 8), -1.0)], 1)
    assert torch.equal(normalised(clear, 8, ((0.5,) * 3, (0.5,) * 3)), torch.ones(1, 3, 8, 8))


def test_a_projected_discriminator_reads_alpha_and_any_shape() -> None:
    projected = ProjectedDiscriminator(
        TinyBackbone(), [4, 8, 16], TEXT_DIM, 8, head_channels=8, image_channels=4, aspect_ratio=1.5
    )
    first = small_discriminator(image_channels=4, aspect_ratio=1.5)
    joint = JointDiscriminator([first, projected])
    assert (joint.image_channels, joint.aspect_ratio) == (4, 1.5)
    images = (torch.rand(4, 4, 8, 12) * 2 - 1).requires_grad_()
    joint(images, text_features(), Growth(8)).mean().backward()
    assert images.grad is not None
    assert images.grad[:, 3].any()  # alpha is judged too
    for name, value in (("image_channels", 3), ("aspect_ratio", 1.0)):
        shape: dict[str, Any] = {"image_channels": 4, "aspect_ratio": 1.5, name: value}
        other = small_discriminator(**shape)
        with pytest.raises(UserError, match=rf"discriminators\[1\].{name} is {value}"):
            JointDiscriminator([first, other])


def test_networks_of_different_shapes_do_not_go_together() -> None:
    rest = (TinyText(TEXT_DIM), NonSaturating(), adam(), adam())
    generator, discriminator = small_generator(aspect_ratio=1.5), small_discriminator()
    with pytest.raises(UserError, match=r"aspect ratio 1.5, but MultiscaleDiscriminator reads 1: give both"):
        TextToImageGAN(generator, discriminator, *rest)


def test_a_style_encoder_reads_the_shape_and_alpha() -> None:
    encoder = StyleEncoder(8, 2, 6, width=4, aspect_ratio=1.5, image_channels=4)
    assert encoder(torch.randn(3, 4, 8, 12), torch.randn(3, 6)).shape == (3, 2, 6)
