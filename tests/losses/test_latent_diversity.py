"""Losses that keep the images of one caption different: values, gradients, and their effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.losses.base import LossInputs
from imagen_pl.losses.latent_diversity import LatentContrastive, ModeSeeking
from imagen_pl.models.discriminators.base import ImageFeatures
from imagen_pl.models.generators.base import Generator
from imagen_pl.schedules import Stage
from imagen_pl.types import Growth, TextFeatures
from tests.helpers.networks import small_discriminator, text_features
from tests.helpers.training import SaveAt, assert_same, tiny_gan, train, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")
EIGHT = (Stage(8, kimg=10.0, batch_size=8),)


class Scaled(Generator):
    """Images whose pixels are all `strength` times the latent's first number."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.resolutions, self.latent_dim, self.text_dim = (4,), 5, 6
        self.strength = strength

    def forward(self, z: Tensor, text: TextFeatures, *_: Any, **__: Any) -> Tensor:
        return (self.strength * z[:, 0])[:, None, None, None].expand(-1, 3, 4, 4)

    def blocks(self) -> dict[int, torch.nn.Module]:
        return {}


def given(generator: Generator, z: Tensor, final: Tensor | None = None) -> LossInputs:
    text = text_features(len(z))
    features = ImageFeatures({}, torch.zeros(len(z), 6) if final is None else final)
    images = generator(z, text)
    return LossInputs(images, features, text, Growth(4), generator=generator, latents=z)


def test_mode_seeking_is_the_latents_distance_over_the_images_distance() -> None:
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    other = torch.randn(3, 5)
    judge = small_discriminator()
    torch.manual_seed(1)

    loss = ModeSeeking(share=0.5)(judge, NonSaturating(), given(Scaled(0.5), z))

    images = 0.5 * (z[:3, 0] - other[:, 0]).abs()
    torch.testing.assert_close(loss, (z[:3] - other).abs().mean(1) / (images + 1e-5))


def test_mode_seeking_is_small_for_varied_images() -> None:
    z = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
    judge = small_discriminator()
    losses = []
    for strength in (0.0, 0.1, 1.0):
        torch.manual_seed(1)
        losses.append(ModeSeeking()(judge, NonSaturating(), given(Scaled(strength), z)).median())

    same, little, much = losses
    assert same > 100 * little
    assert little > 5 * much


def test_latent_contrastive_is_cross_entropy_over_the_latents_of_the_batch() -> None:
    z, final = torch.randn(4, 5), torch.randn(4, 6)
    term = LatentContrastive(6, 5, 3, temperature=0.5)

    loss = term(small_discriminator(), NonSaturating(), given(Scaled(1.0), z, final))

    similarity = F.normalize(term.image(final), dim=1) @ F.normalize(term.latent(z), dim=1).T
    torch.testing.assert_close(loss, -F.log_softmax(similarity / 0.5, dim=1).diagonal())


def test_latent_contrastive_says_which_size_is_wrong() -> None:
    with pytest.raises(
        ValueError, match=r"LatentContrastive\.image_dim is 7, but the discriminator's final_dim"
    ):
        LatentContrastive(7).check(small_discriminator(final_dim=6))


@pytest.mark.parametrize("share", [0, 1.5])
def test_share_of_mode_seeking_is_checked(share: float) -> None:
    with pytest.raises(ValueError, match=f"ModeSeeking.share {share} must be above 0 and at most 1"):
        ModeSeeking(share=share)


@pytest.mark.parametrize("term", [ModeSeeking(1.0), LatentContrastive(8, 8, 8, generator_weight=1.0)])
def test_training_with_the_term_alone_makes_the_latent_matter(term: Any) -> None:
    """The same run with the term has a larger share of its variance from the latent."""

    def spread(losses: list[Any]) -> float:
        gan = tiny_gan(losses=losses)
        train(gan, 800, stages=EIGHT)
        with torch.no_grad():
            images = gan.generator(torch.randn(64, 8), TextFeatures(
                torch.zeros(64, 1, 16), torch.ones(64, 1, dtype=torch.bool), torch.ones(64, 16)
            ), Growth(8))  # fmt: skip
        return float(images.var(0).mean())

    torch.manual_seed(0)
    without, with_term = spread([]), spread([term])

    assert with_term > 1.2 * without


def test_parameters_of_the_term_are_trained_with_the_generator_and_resume(tmp_path: Any) -> None:
    def gan() -> Any:
        torch.manual_seed(0)
        return tiny_gan(losses=[LatentContrastive(8, 8, 8, generator_weight=1.0)])

    whole, half = gan(), gan()
    before = weights_of(whole.losses)
    train(whole, 128, stages=EIGHT)
    assert all(not torch.equal(before[name], value) for name, value in weights_of(whole.losses).items())

    train(half, 64, [SaveAt({64: tmp_path / "half.ckpt"})], stages=EIGHT)
    again = gan()
    train(again, 128, ckpt_path=tmp_path / "half.ckpt", stages=EIGHT)
    assert_same(weights_of(again), weights_of(whole))
