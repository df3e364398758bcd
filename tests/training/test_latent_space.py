"""Training in an autoencoder's latents: as in pixels, frozen, cached, and saved once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import Relativistic
from imagen_pl.losses.gradient_penalties import R1, R2
from imagen_pl.losses.image_matching import PixelMatching
from imagen_pl.losses.self_supervised import Rotation
from imagen_pl.losses.text_matching import ImageTextContrastive, MismatchedCaptions
from imagen_pl.models.augment import DiffAugment
from imagen_pl.models.autoencoders.base import Autoencoder
from imagen_pl.models.autoencoders.convolutional import ConvAutoencoder
from imagen_pl.models.discriminators.base import ImageFeatures
from imagen_pl.models.discriminators.latent import LatentDiscriminator
from imagen_pl.models.discriminators.multiscale import MultiscaleDiscriminator
from imagen_pl.models.discriminators.transformer import TransformerDiscriminator
from imagen_pl.models.generators.latent import LatentGenerator
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.models.generators.transformer import TransformerGenerator
from imagen_pl.schedules import Stage
from imagen_pl.types import CaptionedBatch, Growth
from tests.helpers.autoencoders import write_autoencoder
from tests.helpers.fakes import IdentityAutoencoder
from tests.helpers.training import (
    SHORT,
    AtEachBatch,
    SaveAt,
    assert_same,
    tiny_gan,
    train,
    weights_of,
)

CHANNELS = {4: 8, 8: 4}  # of latents; 16 and 32 px
STAGES = (Stage(16, kimg=0.016, batch_size=8), Stage(32, kimg=1.0, batch_size=8, fade_kimg=0.016))


def objective() -> dict[str, Any]:
    torch.manual_seed(1)  # the same head in each run
    return {
        "adversarial": Relativistic(),
        "penalties": [R1(1.0), R2(1.0, every=2)],
        "losses": [MismatchedCaptions(), ImageTextContrastive(8, 16, generator_weight=0.5), PixelMatching()],
        "augment": DiffAugment(),
    }


def latent_gan(autoencoder: Autoencoder, cache: bool = True, **settings: Any) -> TextToImageGAN:
    """16 and 32 px, in latents of a quarter of the side."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"text_dim": 16, "image_channels": autoencoder.latent_channels}
    generator = StyleGenerator(CHANNELS, latent_dim=8, style_dim=8, **sizes)
    discriminator = MultiscaleDiscriminator(CHANNELS, final_dim=8, **sizes)
    return tiny_gan(
        LatentGenerator(generator, autoencoder, cache_latents=cache),
        LatentDiscriminator(discriminator, autoencoder.downsampling),
        **settings,
    )


@pytest.fixture
def autoencoder(tmp_path: Path) -> ConvAutoencoder:
    return ConvAutoencoder(str(write_autoencoder(tmp_path / "autoencoder")))


@pytest.mark.parametrize("share_passes", [False, True])
def test_an_autoencoder_that_changes_nothing_trains_as_pixels_do(share_passes: bool) -> None:
    """To the bit: growth, fades, penalties, augmentation, losses on images, and the average."""
    plain = tiny_gan(share_passes=share_passes, **objective())
    train(plain, 80, stages=SHORT)
    inner = tiny_gan()
    wrapped = tiny_gan(
        LatentGenerator(inner.generator, IdentityAutoencoder(), cache_latents=False),
        LatentDiscriminator(inner.discriminator, 1),
        share_passes=share_passes,
        **objective(),
    )
    train(wrapped, 80, stages=SHORT)

    def own(name: str) -> str:
        return name.replace("generator.generator.", "generator.").replace(
            "discriminator.discriminator.", "discriminator."
        )

    found = {own(name): value for name, value in weights_of(wrapped).items() if ".autoencoder." not in name}
    assert_same(found, weights_of(plain))
    captions = ["a heart", "a cat"]
    assert torch.equal(wrapped.sample(captions, 1), plain.sample(captions, 1))


def test_the_discriminator_compares_latents_and_samples_are_decoded(
    autoencoder: ConvAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gan = latent_gan(autoencoder)
    seen: list[tuple[int, ...]] = []
    inner = gan.discriminator.discriminator
    assert isinstance(inner, MultiscaleDiscriminator)
    whole = inner.extract_features

    def extract_features(images: Tensor, growth: Growth | None = None) -> ImageFeatures:
        seen.append(images.shape)
        return whole(images, growth)

    monkeypatch.setattr(inner, "extract_features", extract_features)
    train(gan, 32, stages=STAGES)
    assert set(seen) == {(8, 2, 4, 4), (8, 2, 8, 8)}
    assert gan.generator.resolutions == gan.discriminator.resolutions == (16, 32)
    assert tuple(gan.generator.blocks()) == tuple(gan.discriminator.blocks()) == (16, 32)
    assert gan.sample(["a heart"], 0).shape == (1, 3, 32, 32)
    gan.growth = Growth(16)
    assert gan.sample(["a heart"], 0).shape == (1, 3, 16, 16)


def test_the_autoencoder_has_no_gradient_no_optimizer_and_is_in_memory_once(
    autoencoder: ConvAutoencoder,
) -> None:
    gan = latent_gan(autoencoder, **objective())
    before = {name: each.clone() for name, each in autoencoder.weights().items()}
    frozen = {id(p) for p in autoencoder.on(torch.device("cpu")).parameters()}
    trainer = train(gan, 16, stages=STAGES)
    trained = {id(p) for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
    assert frozen.isdisjoint(trained)
    assert frozen.isdisjoint(id(p) for p in gan.parameters())
    assert_same(dict(autoencoder.weights()), before)
    assert all(p.grad is None for p in autoencoder.on(torch.device("cpu")).parameters())
    assert gan.ema.generator.autoencoder is gan.generator.autoencoder
    state = gan.state_dict()
    name = "autoencoder.decoder.0.weight"
    assert state[f"generator.{name}"].data_ptr() == state[f"ema.generator.{name}"].data_ptr()


def test_no_encoder_runs_in_the_steps_where_latents_are_cached(
    autoencoder: ConvAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal training but for the rounding of half precision; a second run encodes nothing."""
    encoded: list[int] = []
    whole = ConvAutoencoder.encode

    def encode(self: ConvAutoencoder, images: Tensor) -> Tensor:
        encoded.append(len(images))
        return whole(self, images)

    monkeypatch.setattr(ConvAutoencoder, "encode", encode)
    monkeypatch.setenv("IMAGEN_PL_CACHE", str(tmp_path / "cache"))
    given: list[Tensor] = []

    def keep(gan: TextToImageGAN, batch: CaptionedBatch) -> None:
        latents = gan.encoded(batch).latents
        assert latents is not None
        given.append(latents.clone())

    for cache, images in ((True, 24 * 2), (True, 0), (False, 48)):
        encoded.clear()
        looks = AtEachBatch(after=keep)
        gan = latent_gan(autoencoder, cache)
        train(gan, 48, [looks] if not cache or not images else [], stages=STAGES)
        assert sum(encoded) == (images if cache else 2 * images)  # once in the step, once in the look
    half = len(given) // 2
    for cached, fresh in zip(given[:half], given[half:], strict=True):
        torch.testing.assert_close(cached, fresh, atol=5e-3, rtol=5e-3)


def test_images_are_decoded_in_a_step_only_for_losses_that_read_them(
    autoencoder: ConvAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    whole = ConvAutoencoder.decode

    def decode(self: ConvAutoencoder, latents: Tensor) -> Tensor:
        decoded.append(len(latents))
        return whole(self, latents)

    monkeypatch.setattr(ConvAutoencoder, "decode", decode)
    for loss, images in ((ImageTextContrastive(8, 16, generator_weight=1.0), []), (PixelMatching(), [8, 8])):
        train(latent_gan(autoencoder, losses=[loss]), 16, stages=STAGES)
        assert decoded == images


def test_a_resumed_run_is_the_run_that_was_never_stopped(
    autoencoder: ConvAutoencoder, tmp_path: Path
) -> None:
    """Even if the folder has other weights by then: those of the checkpoint are used."""
    whole = latent_gan(autoencoder, **objective())
    train(whole, 48, [SaveAt({24: tmp_path / "24.ckpt"})], stages=STAGES)
    write_autoencoder(tmp_path / "autoencoder", seed=1)
    resumed = latent_gan(ConvAutoencoder(autoencoder.path), **objective())
    train(resumed, 48, ckpt_path=tmp_path / "24.ckpt", stages=STAGES)
    assert_same(weights_of(resumed), weights_of(whole))


def test_a_checkpoint_holds_the_weights_once(tmp_path: Path) -> None:
    large = ConvAutoencoder(str(write_autoencoder(tmp_path / "autoencoder", channels=[64, 64])))
    size = sum(each.numel() * each.element_size() for each in large.weights().values())
    trainer = train(latent_gan(large), 8, stages=STAGES)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    rest = tmp_path / "b.ckpt"
    small = ConvAutoencoder(str(write_autoencoder(tmp_path / "small")))
    train(latent_gan(small), 8, stages=STAGES).save_checkpoint(rest)
    assert size < (tmp_path / "a.ckpt").stat().st_size < rest.stat().st_size + 1.2 * size


def test_the_transformers_train_in_latents(autoencoder: ConvAutoencoder) -> None:
    """Whose generator gives several images of each sample, with noise."""
    gan = tiny_gan(
        LatentGenerator(
            TransformerGenerator(8, 4, 8, 2, 2, 16, 8, noise=[0.5, 0.0], image_channels=2), autoencoder
        ),
        LatentDiscriminator(TransformerDiscriminator(8, 4, 8, 1, 2, 16, images=2, image_channels=2)),
        share_passes=True,
        losses=[PixelMatching()],
    )
    before = weights_of(gan.generator)
    train(gan, 16, stages=(Stage(32, kimg=1, batch_size=8),))
    assert gan.sample(["a heart"], 0).shape == (1, 3, 32, 32)
    assert not torch.equal(before["generator.tokens"], gan.generator.state_dict()["generator.tokens"])


def test_what_does_not_fit_is_refused_in_one_line(autoencoder: ConvAutoencoder) -> None:
    with pytest.raises(UserError, match="Rotation gives the discriminator images, but it reads latents"):
        latent_gan(autoencoder, losses=[Rotation(8, discriminator_weight=1.0)])
    with pytest.raises(UserError, match="draws 3 channels, but the autoencoder's latents have 2"):
        LatentGenerator(tiny_gan().generator, autoencoder)
    with pytest.raises(UserError, match="set the LatentGenerator's"):
        LatentGenerator(tiny_gan({"init_from": "icons"}).generator, IdentityAutoencoder())
