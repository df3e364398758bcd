"""What all generators and discriminators do: MLP, DCGAN, SAGAN, ProGAN, DF-GAN, R3GAN, transformer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imagen_pl.errors import UserError
from imagen_pl.losses.gradient_penalties import R1
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.discriminators.dcgan import DCGANDiscriminator
from imagen_pl.models.discriminators.df_gan import DFGANDiscriminator, HalvingBlock
from imagen_pl.models.discriminators.mlp import MLPDiscriminator
from imagen_pl.models.discriminators.progan import ProGANDiscriminator
from imagen_pl.models.discriminators.r3gan import R3GANDiscriminator
from imagen_pl.models.discriminators.sagan import SAGANDiscriminator
from imagen_pl.models.discriminators.transformer import TransformerDiscriminator
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.dcgan import DCGANGenerator
from imagen_pl.models.generators.df_gan import Affine, DFGANGenerator, FusionBlock
from imagen_pl.models.generators.mlp import MLPGenerator
from imagen_pl.models.generators.progan import ProGANGenerator
from imagen_pl.models.generators.r3gan import R3GANGenerator
from imagen_pl.models.generators.sagan import ConditionalBatchNorm, SAGANGenerator
from imagen_pl.models.generators.transformer import TransformerGenerator
from imagen_pl.models.layers.equalized import EqualizedConv2d, EqualizedLinear, PixelNorm
from imagen_pl.models.layers.resampling import downsample, upsample
from imagen_pl.models.layers.resnext import ResNeXtBlock
from imagen_pl.models.layers.spectral import normalize_all
from imagen_pl.training.manual_optimization import parts_to_compile
from imagen_pl.types import Growth
from tests.helpers.networks import TEXT_DIM, assert_blocks_share_nothing, awaken, text_features
from tests.helpers.training import tiny_gan

pytestmark = pytest.mark.usefixtures("one_thread")

NARROW = {4: 16, 8: 8, 16: 8}
DCGAN = {4: 16, 8: 8, 16: 3}
PAIRS: dict[str, Callable[[], tuple[Generator, Discriminator]]] = {
    "mlp": lambda: (
        MLPGenerator(16, [16, 32], TEXT_DIM, latent_dim=5),
        MLPDiscriminator(16, [32, 16], TEXT_DIM),
    ),
    "dcgan": lambda: (DCGANGenerator(DCGAN, TEXT_DIM, latent_dim=5), DCGANDiscriminator(DCGAN, TEXT_DIM)),
    "sagan": lambda: (
        SAGANGenerator(NARROW, TEXT_DIM, latent_dim=5, self_attention_at=[8]),
        SAGANDiscriminator(NARROW, TEXT_DIM, self_attention_at=[8]),
    ),
    "df_gan": lambda: (DFGANGenerator(NARROW, TEXT_DIM, latent_dim=5), DFGANDiscriminator(NARROW, TEXT_DIM)),
    "r3gan": lambda: (
        R3GANGenerator(NARROW, TEXT_DIM, latent_dim=5, caption_dim=8, blocks=1),
        R3GANDiscriminator(NARROW, TEXT_DIM, final_dim=8, blocks=1),
    ),
    "transformer": lambda: (
        TransformerGenerator(16, 4, 16, 4, 2, TEXT_DIM, latent_dim=5, noise=[0.0]),
        TransformerDiscriminator(16, 4, 16, 2, 2, TEXT_DIM, images=1),
    ),
    "progan": lambda: (
        ProGANGenerator(NARROW, TEXT_DIM, latent_dim=5),
        ProGANDiscriminator(NARROW, TEXT_DIM),
    ),
}
Pair = tuple[Generator, Discriminator]


@pytest.fixture(params=list(PAIRS))
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(0)
    generator, discriminator = PAIRS[request.param]()
    awaken(generator)
    awaken(discriminator)
    return generator, discriminator


def test_every_parameter_gets_a_gradient(pair: Pair, latents: torch.Tensor) -> None:
    generator, discriminator = pair
    text = text_features()

    images = generator(latents, text)
    discriminator(images, text).square().sum().backward()

    assert images.shape == (4, 3, 16, 16)
    for network in pair:
        for name, parameter in network.named_parameters():
            # ProGAN's coarser RGB layers wait for their stage.
            if "rgb" in name and name.startswith(("grown.4.", "grown.8.")):
                continue
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
            assert torch.isfinite(parameter.grad).all(), name


def test_latent_and_caption_change_the_image(pair: Pair, latents: torch.Tensor) -> None:
    generator = pair[0].eval()
    text = text_features()
    with torch.no_grad():
        images, again = generator(latents, text), generator(latents, text)
        other_latent, other_caption = generator(latents.flip(0), text), generator(latents, text.roll())

    assert torch.equal(images, again)
    for other in (other_latent, other_caption):
        assert ((images - other).abs().amax((1, 2, 3)) > 1e-3).all()


def test_truncation_to_zero_leaves_one_image_a_caption(pair: Pair, latents: torch.Tensor) -> None:
    generator = pair[0].eval()
    text = text_features(1)[torch.zeros(4, dtype=torch.int64)]
    with torch.no_grad():
        typical, varied = generator(latents, text, truncation=0.0), generator(latents, text)

    torch.testing.assert_close(typical, typical[:1].expand_as(typical))
    assert varied.var(0).sum() > 0


def test_logits_are_those_of_the_features_and_read_image_and_caption(pair: Pair) -> None:
    discriminator = pair[1].eval()
    text, images = text_features(), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        features = discriminator.extract_features(images)
        logits = discriminator.logits(features, text)

        assert torch.equal(discriminator(images, text), logits)
        assert ((discriminator.logits(features, text.roll()) - logits).abs() > 1e-4).all()
        assert ((discriminator(images.flip(0), text) - logits).abs() > 1e-6).all()
    assert logits.shape == (4, 1)
    assert features.final.shape == (4, discriminator.final_dim)
    assert {r: m.shape[1] for r, m in features.maps.items()} == dict(discriminator.map_channels)
    assert all(r == m.shape[-1] for r, m in features.maps.items())


def test_bfloat16_is_finite_and_gives_float32(pair: Pair, latents: torch.Tensor) -> None:
    generator, discriminator = pair
    text = text_features()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = generator(latents, text)
        logits = discriminator(images, text)
    logits.sum().backward()

    assert images.dtype == logits.dtype == torch.float32
    for network in pair:
        assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_parts_that_are_compiled_are_called(pair: Pair, latents: torch.Tensor) -> None:
    for network in pair:
        parts = parts_to_compile(network)
        assert parts
        called: list[nn.Module] = []
        for part in parts:
            part.register_forward_hook(lambda module, *_, seen=called: seen.append(module))
        if isinstance(network, Generator):
            network(latents, text_features())
        else:
            network(torch.randn(4, 3, 16, 16), text_features())
        assert {*parts} == {*called}


def test_unknown_resolutions_raise(pair: Pair, latents: torch.Tensor) -> None:
    generator, discriminator = pair
    with pytest.raises(ValueError, match="resolution 64 is not one of"):
        generator(latents, text_features(), Growth(64))
    with pytest.raises(ValueError, match="resolution 64 is not one of"):
        discriminator(torch.zeros(4, 3, 64, 64), text_features(), Growth(64))
    with pytest.raises(ValueError, match="images of 8 px were given at growth 16 px"):
        discriminator(torch.zeros(4, 3, 8, 8), text_features())


def test_channels_of_dcgan_end_with_the_image() -> None:
    with pytest.raises(ValueError, match="must end with the image's three"):
        DCGANGenerator(NARROW)
    with pytest.raises(ValueError, match="must end with the image's three"):
        DCGANDiscriminator({4: 3})


def test_real_and_generated_images_are_normalized_apart_in_dcgan() -> None:
    """Scores of real images do not depend on the generated ones, which are scored in another call."""
    discriminator = PAIRS["dcgan"]()[1]
    text, real, fake = text_features(), torch.randn(4, 3, 16, 16), 3 * torch.randn(4, 3, 16, 16)
    first = discriminator(real, text)
    discriminator(fake, text)

    assert torch.equal(discriminator(real, text), first)
    assert not torch.allclose(discriminator(torch.cat([real, fake]), text_features(8))[:4], first, atol=1e-3)


def test_gradient_penalties_are_refused_with_batch_normalization() -> None:
    discriminator = DCGANDiscriminator({8: 8, 16: 8, 32: 3}, text_dim=16)
    with pytest.raises(
        UserError, match=r"DCGANDiscriminator normalizes over the batch, .*: set penalties to"
    ):
        tiny_gan(discriminator=discriminator, penalties=[R1(1.0)])


def test_conditional_batch_norm_scales_and_shifts_by_the_caption() -> None:
    torch.manual_seed(0)
    layer = ConditionalBatchNorm(3, TEXT_DIM)
    x, pooled = 5 + 2 * torch.randn(8, 3, 4, 4), torch.randn(8, TEXT_DIM)
    plain = F.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(layer(x, pooled), plain)  # its gain starts at 1, its bias at 0

    awaken(layer)
    gain, bias = (each(pooled)[:, :, None, None] for each in (layer.gain, layer.bias))
    torch.testing.assert_close(layer(x, pooled), (1 + gain) * plain + bias)


def test_spectral_normalization_makes_the_largest_singular_value_one() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(6, 8), nn.Linear(8, 4)
    nn.init.zeros_(last.weight)
    layers = nn.Sequential(first, last)
    normalize_all(layers)
    for _ in range(50):  # power iterations
        layers(torch.randn(2, 6))

    assert torch.linalg.matrix_norm(first.weight, 2).item() == pytest.approx(1, abs=1e-4)
    assert not last.weight.any()  # not a number otherwise


def test_equalized_layers_scale_their_weights_when_they_run() -> None:
    """Section 4.1: weights are standard normal, and w / c is used, c being He's constant."""
    torch.manual_seed(0)
    conv, linear = EqualizedConv2d(16, 8, 3, padding=1), EqualizedLinear(400, 300, gain=1.0)
    assert conv.weight.std().item() == pytest.approx(1, abs=0.1)
    x = torch.randn(2, 16, 5, 5)
    torch.testing.assert_close(
        conv(x), F.conv2d(x, conv.weight * (2 / (16 * 9)) ** 0.5, conv.bias, padding=1)
    )
    assert linear(torch.randn(64, 400)).std().item() == pytest.approx(1, abs=0.05)


def test_pixel_norm_gives_each_pixel_a_mean_square_of_one() -> None:
    x = 7 * torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(PixelNorm()(x).square().mean(1), torch.ones(2, 3, 3))


def test_blocks_of_r3gan_start_as_the_identity() -> None:
    torch.manual_seed(0)
    block, x = ResNeXtBlock(64, blocks=16), torch.randn(2, 64, 4, 4)

    assert torch.equal(block(x), x)
    assert block.grouped.groups == 128 // 16
    # He's deviation for a leaky ReLU of slope 0.2, times 16^(-1/4).
    expected = (2 / (1 + 0.2**2) / (16 * 9)) ** 0.5 / 2
    assert block.grouped.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_progan_fades_from_the_old_to_the_new_network(latents: torch.Tensor) -> None:
    torch.manual_seed(0)
    generator, discriminator = PAIRS["progan"]()
    text, images = text_features(), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        old = upsample(generator(latents, text, Growth(8)))
        torch.testing.assert_close(generator(latents, text, Growth(16, 0.0)), old)
        new = generator(latents, text, Growth(16))
        torch.testing.assert_close(generator(latents, text, Growth(16, 0.25)), 0.75 * old + 0.25 * new)

        old_logits = discriminator(downsample(images), text, Growth(8))
        torch.testing.assert_close(discriminator(images, text, Growth(16, 0.0)), old_logits)
        assert not torch.allclose(discriminator(images, text, Growth(16)), old_logits, atol=1e-4)


def test_blocks_of_progan_share_nothing_and_the_others_do_not_grow() -> None:
    for name, make in PAIRS.items():
        for network in make():
            if name == "progan":
                assert_blocks_share_nothing(network, (4, 8, 16))
            else:
                assert network.blocks() == {}
                assert network.resolutions == (16,)


def test_caption_and_latent_scale_and_shift_each_map_of_df_gan() -> None:
    torch.manual_seed(0)
    layer, x, condition = Affine(3, 7), torch.randn(2, 3, 4, 4), torch.randn(2, 7)
    assert torch.equal(layer(x, condition), x)  # at first

    awaken(layer)
    gain, shift = (each(condition)[:, :, None, None] for each in (layer.gain, layer.shift))
    torch.testing.assert_close(layer(x, condition), gain * x + shift)
    assert gain.std(0).min() > 0


def test_blocks_of_df_gan_double_and_halve_the_side_and_keep_what_they_add_to() -> None:
    torch.manual_seed(0)
    x, condition = torch.randn(2, 8, 4, 4), torch.randn(2, 7)
    up, down = FusionBlock(8, 8, 7), HalvingBlock(8, 8)
    for parameter in up.second.parameters():
        nn.init.zeros_(parameter)

    assert torch.equal(up(x, condition), F.interpolate(x, scale_factor=2))
    assert torch.equal(down(x), downsample(x))
    nn.init.ones_(down.share)
    torch.testing.assert_close(down(x), downsample(x) + down.layers(x))


def test_discriminator_of_df_gan_needs_two_resolutions() -> None:
    with pytest.raises(ValueError, match="must have two resolutions or more"):
        DFGANDiscriminator({4: 8})
