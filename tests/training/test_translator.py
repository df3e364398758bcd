"""Training a Translator on two toy domains, without pairs: red and blue rectangles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import Relativistic
from imagen_pl.losses.base import LossInputs, LossTerms
from imagen_pl.losses.gradient_penalties import R1, R2
from imagen_pl.losses.text_matching import MismatchedCaptions
from imagen_pl.losses.translation import (
    CycleConsistency,
    IdentityTranslation,
    StyleDiversity,
    StyleReconstruction,
)
from imagen_pl.models.discriminators.multiscale import MultiscaleDiscriminator
from imagen_pl.models.generators.translator import Translator
from imagen_pl.schedules import Linear, Stage
from imagen_pl.training.ema import GeneratorEMA
from imagen_pl.types import EncodedBatch, Growth, TextFeatures
from tests.helpers.training import SaveAt, assert_same, tiny_gan, train, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE, BATCH, STEPS = 16, 8, 160
RED, BLUE = 0, 1


def shape(top: int, left: int, height: int, width: int, domain: int) -> Tensor:
    image = torch.ones(3, SIDE, SIDE)
    other_colours = [1, 2] if domain == RED else [0, 1]
    image[other_colours, top : top + height, left : left + width] = -1
    return image


def both(numbers: Tensor) -> list[Tensor]:
    """A shape in both domains."""
    height, width = (4 + numbers[:2] * 8).int().tolist()
    top, left = int(numbers[2] * (SIDE - height + 1)), int(numbers[3] * (SIDE - width + 1))
    return [shape(top, left, height, width, domain) for domain in (RED, BLUE)]


def text_of(domains: Tensor) -> TextFeatures:
    pooled = 2**0.5 * torch.eye(2)[domains]
    return TextFeatures(pooled[:, None], torch.ones(len(pooled), 1, dtype=torch.bool), pooled)


def batches(images: Tensor, draw: torch.Generator) -> Iterator[EncodedBatch]:
    while True:
        rows = torch.randint(len(images), (BATCH,), generator=draw)
        domains = torch.randint(2, (BATCH,), generator=draw)
        yield EncodedBatch(images[rows, domains], text_of(domains), [f"{d}" for d in domains.tolist()])


def test_translations_of_held_out_shapes_are_nearer_to_the_true_ones_than_the_input() -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.stack([torch.stack(both(torch.rand(4, generator=draw))) for _ in range(64)])
    learnt, held_out = images[:48], images[48:]
    torch.manual_seed(0)
    translator = Translator({8: 16, 16: 8}, text_dim=2, latent_dim=4, style_dim=16, blocks=1)
    discriminator = MultiscaleDiscriminator({4: 16, 8: 16, 16: 8}, text_dim=2, final_dim=16)
    average = GeneratorEMA(translator, halflife_kimg=0.1)
    adversarial, penalties = Relativistic(), (R1(1.0), R2(1.0))
    mismatch = MismatchedCaptions()
    terms = LossTerms([CycleConsistency(), StyleReconstruction(0.3)])
    optimizers = [torch.optim.Adam(n.parameters(), 5e-3, (0.0, 0.99)) for n in (discriminator, translator)]
    source = batches(learnt, draw)
    for step in range(STEPS):
        batch = next(source)
        z = torch.randn(BATCH, 4, generator=draw)
        fake = translator.for_batch(z, batch)
        features = discriminator.extract_features(batch.images)
        real_logits = discriminator.logits(features, batch.text)
        loss = adversarial.discriminator(real_logits, discriminator(fake.detach(), batch.text))
        growth = Growth(SIDE)
        inputs = LossInputs(batch.images, features, batch.text, growth, batch.captions)
        loss = loss + mismatch(discriminator, adversarial, inputs)
        for penalty in penalties:
            loss = loss + penalty(discriminator, batch.images, fake.detach(), batch.text)
        _step(optimizers[0], loss)
        features = discriminator.extract_features(fake)
        inputs = LossInputs(
            fake, features, batch.text, growth, batch.captions,
            real_images=batch.images, generator=translator, latents=z,
        )  # fmt: skip
        weighted, _ = terms.weighted("generator", discriminator, adversarial, inputs, 0)
        loss = adversarial.generator(discriminator.logits(features, batch.text), real_logits.detach())
        _step(optimizers[1], torch.stack([loss.mean(), *(each.mean() for each in weighted.values())]).sum())
        average.update(translator, (step + 1) * BATCH, BATCH)

    trained = average.generator
    assert isinstance(trained, Translator)
    for given in (RED, BLUE):
        wanted = text_of(torch.full((len(held_out),), 1 - given))
        with torch.no_grad():
            style = trained.style_of_latent(torch.randn(len(held_out), 4, generator=draw), wanted)
            drawn = trained.translate(held_out[:, given], style)
        true = held_out[:, 1 - given]
        gap = (drawn - true).abs().mean((1, 2, 3))
        floor = (held_out[:, given] - true).abs().mean((1, 2, 3))
        assert (gap < floor).float().mean() > 0.8
        assert gap.mean() < 0.75 * floor.mean()


@pytest.mark.parametrize("share_passes", [False, True])
def test_a_resumed_run_is_the_one_that_was_never_stopped(tmp_path: Path, share_passes: bool) -> None:
    def gan() -> TextToImageGAN:
        torch.manual_seed(0)
        translator = Translator({8: 8, 16: 4}, text_dim=16, latent_dim=8, style_dim=8, blocks=1)
        diversity = StyleDiversity(Linear(1.0, 0.0, kimg=0.04))
        losses = [CycleConsistency(every=2), StyleReconstruction(), diversity, IdentityTranslation()]
        return tiny_gan(
            translator,
            adversarial=Relativistic(),
            penalties=[R1(1.0)],
            losses=losses,
            share_passes=share_passes,
        )

    whole, stages, stop = gan(), (Stage(16, kimg=1.0, batch_size=8),), tmp_path / "stop.ckpt"
    train(whole, 48, [SaveAt({24: stop})], stages=stages)
    resumed = gan()
    train(resumed, 48, ckpt_path=stop, stages=stages)

    assert whole.images_seen == resumed.images_seen == 48
    assert_same(weights_of(whole), weights_of(resumed))
    changed = zip(whole.ema.generator.parameters(), gan().ema.generator.parameters(), strict=True)
    assert all(not torch.equal(after, before) for after, before in changed)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.mean().backward()
    optimizer.step()
