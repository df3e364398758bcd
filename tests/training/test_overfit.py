"""Training on eight pictures: after a few seconds, each caption draws its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_pl.losses.adversarial import AdversarialLoss, Hinge, NonSaturating, Relativistic, Wasserstein
from imagen_pl.losses.base import LossInputs
from imagen_pl.losses.gradient_penalties import (
    R1,
    R2,
    FiniteDifferenceR1,
    FiniteDifferenceR2,
    MatchingAwarePenalty,
    Penalty,
    WassersteinPenalty,
)
from imagen_pl.losses.text_matching import MismatchedCaptions
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.discriminators.dcgan import DCGANDiscriminator
from imagen_pl.models.discriminators.df_gan import DFGANDiscriminator
from imagen_pl.models.discriminators.mlp import MLPDiscriminator
from imagen_pl.models.discriminators.progan import ProGANDiscriminator
from imagen_pl.models.discriminators.r3gan import R3GANDiscriminator
from imagen_pl.models.discriminators.sagan import SAGANDiscriminator
from imagen_pl.models.discriminators.transformer import TransformerDiscriminator
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.dcgan import DCGANGenerator
from imagen_pl.models.generators.df_gan import DFGANGenerator
from imagen_pl.models.generators.mlp import MLPGenerator
from imagen_pl.models.generators.progan import ProGANGenerator
from imagen_pl.models.generators.r3gan import R3GANGenerator
from imagen_pl.models.generators.sagan import SAGANGenerator
from imagen_pl.models.generators.transformer import TransformerGenerator
from imagen_pl.training.ema import GeneratorEMA
from imagen_pl.types import EncodedBatch, Growth, TextFeatures
from tests.helpers.networks import TEXT_DIM, small_discriminator, small_generator

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, BATCH = 130, 16


def _eight_pictures() -> Tensor:
    """Four colours, each filled and as a square on white; 8 px, -1 to 1."""
    colours = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]], dtype=torch.float32)
    filled = colours[:, :, None, None].expand(4, 3, 8, 8)
    squares = F.pad(filled[:, :, 2:6, 2:6], [2] * 4, value=1.0)
    return torch.cat([filled, squares])


def _eight_captions() -> TextFeatures:
    """A word for the colour and one for the shape."""
    words = torch.eye(6)
    tokens = torch.stack([torch.stack([words[i % 4], words[4 + i // 4]]) for i in range(8)])
    return TextFeatures(tokens, torch.ones(8, 2, dtype=torch.bool), tokens.sum(1))


@dataclass
class Recipe:
    """Two networks for 8 px and how to train them; rates and betas are Adam's."""

    generator: Generator
    discriminator: Discriminator
    adversarial: AdversarialLoss
    penalties: Sequence[Penalty] = ()
    rates: tuple[float, float] = (4e-3, 4e-3)  # discriminator, generator
    betas: tuple[float, float] = (0.0, 0.99)
    steps: int = STEPS


def _style() -> Recipe:
    channels = {4: 16, 8: 16}
    return Recipe(
        small_generator(channels, style_dim=32, self_attention_at=[]),
        small_discriminator(channels, final_dim=32, heads_at=[], self_attention_at=[]),
        Relativistic(),
        [R1(0.1), R2(0.1)],
    )


def _mlp() -> Recipe:
    """Without the penalty it draws four of the eight."""
    return Recipe(
        MLPGenerator(8, [64, 128], TEXT_DIM, latent_dim=5),
        MLPDiscriminator(8, [128, 64], TEXT_DIM, caption_dim=32, dropout=0.0),
        NonSaturating(),
        [R1(1.0)],
        rates=(3e-3, 3e-3),
        steps=800,
    )


def _dcgan() -> Recipe:
    return Recipe(
        DCGANGenerator({4: 32, 8: 3}, TEXT_DIM, latent_dim=5, caption_dim=32),
        DCGANDiscriminator({4: 32, 8: 3}, TEXT_DIM, caption_dim=32),
        NonSaturating(),
        rates=(2e-3, 2e-3),
        betas=(0.5, 0.999),
        steps=300,
    )


def _sagan() -> Recipe:
    channels = {4: 32, 8: 32}
    return Recipe(
        SAGANGenerator(channels, TEXT_DIM, latent_dim=5, self_attention_at=[8]),
        SAGANDiscriminator(channels, TEXT_DIM, self_attention_at=[4]),
        Hinge(),
        rates=(4e-3, 1e-3),
        betas=(0.0, 0.9),
        steps=250,
    )


def _progan() -> Recipe:
    channels = {4: 32, 8: 32}
    return Recipe(
        ProGANGenerator(channels, TEXT_DIM, latent_dim=16),
        ProGANDiscriminator(channels, TEXT_DIM),
        Wasserstein(),
        [WassersteinPenalty(10.0)],
        steps=250,
    )


def _df_gan() -> Recipe:
    channels = {4: 32, 8: 32}
    return Recipe(
        DFGANGenerator(channels, TEXT_DIM, latent_dim=5),
        DFGANDiscriminator(channels, TEXT_DIM),
        Hinge(),
        [MatchingAwarePenalty(4.0)],
        rates=(2e-3, 2e-3),
        betas=(0.0, 0.9),
        steps=400,
    )


def _r3gan() -> Recipe:
    channels = {4: 32, 8: 32}
    return Recipe(
        R3GANGenerator(channels, TEXT_DIM, latent_dim=5, caption_dim=32, blocks=1),
        R3GANDiscriminator(channels, TEXT_DIM, final_dim=32, blocks=1),
        Relativistic(),
        [R1(0.1), R2(0.1)],
        rates=(2e-3, 2e-3),
        steps=250,
    )


def _transformer() -> Recipe:
    return Recipe(
        TransformerGenerator(8, 4, 32, 2, 2, TEXT_DIM, latent_dim=5, noise=[0.5, 0.0]),
        TransformerDiscriminator(8, 4, 32, 2, 2, TEXT_DIM, images=2),
        Relativistic(),
        [FiniteDifferenceR1(0.1), FiniteDifferenceR2(0.1)],
        rates=(5e-3, 5e-3),
        steps=400,
    )


@pytest.mark.parametrize("make", [_style, _mlp, _dcgan, _sagan, _progan, _df_gan, _r3gan, _transformer])
def test_each_caption_draws_its_own_picture_after_training(make: Callable[[], Recipe]) -> None:
    pictures, captions = _eight_pictures(), _eight_captions()
    torch.manual_seed(0)
    recipe = make()
    generator, discriminator, adversarial = recipe.generator, recipe.discriminator, recipe.adversarial
    ema = GeneratorEMA(generator, halflife_kimg=0.3, ramp=0.1)
    mismatch = MismatchedCaptions()
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=rate, betas=recipe.betas)
        for network, rate in zip((discriminator, generator), recipe.rates, strict=True)
    ]
    draw = torch.Generator().manual_seed(0)
    rows = torch.arange(BATCH) % 8
    text = captions[rows]

    def latents() -> Tensor:
        return torch.randn(BATCH, generator.latent_dim, generator=draw)

    def step(which: int, loss: Tensor) -> None:
        optimizers[which].zero_grad()
        loss.mean().backward()
        optimizers[which].step()

    batch = EncodedBatch(pictures[rows], text, [])
    for i in range(1, recipe.steps + 1):
        real = generator.like_generated(batch)
        fake = generator.for_batch(latents(), batch).detach()
        seen = discriminator.extract_features(real)
        loss = adversarial.discriminator(discriminator.logits(seen, text), discriminator(fake, text))
        loss = loss + mismatch(discriminator, adversarial, LossInputs(batch.images, seen, text, Growth(8)))
        for penalty in recipe.penalties:
            loss = loss + penalty.weight_at(8) * penalty(discriminator, real, fake, text)
        step(0, loss)

        fake_logits = discriminator(generator.for_batch(latents(), batch), text)
        step(1, adversarial.generator(fake_logits, discriminator(real, text).detach()))
        ema.update(generator, i * BATCH, BATCH)

    right = [_right(ema, pictures, captions, seed) for seed in range(4)]
    assert min(right) >= 7, right


def _right(ema: GeneratorEMA, pictures: Tensor, captions: TextFeatures, seed: int) -> int:
    """Captions whose picture is nearer to their own than to any other of the eight."""
    z = torch.randn(8, ema.generator.latent_dim, generator=torch.Generator().manual_seed(100 + seed))
    with torch.no_grad():
        drawn = ema.generator(z, captions)
    nearest = torch.cdist(drawn.flatten(1), pictures.flatten(1)).argmin(1)
    return int((nearest == torch.arange(8)).sum())


def test_untrained_generator_does_not_draw_the_pictures_of_the_captions() -> None:
    """Without this, the test above would prove nothing."""
    generator = small_generator({4: 16, 8: 16}, style_dim=32, self_attention_at=[])

    assert _right(GeneratorEMA(generator, 1.0), _eight_pictures(), _eight_captions(), 0) < 4
