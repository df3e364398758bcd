"""Losses against the real image of the same caption: their values and the direction of their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.losses.base import LossInputs, LossTerm
from imagen_pl.losses.image_matching import PerceptualMatching, PixelMatching
from imagen_pl.models.discriminators.base import ImageFeatures
from imagen_pl.models.pretrained.backbones import IMAGENET, Backbone, Normalisation, TimmBackbone
from imagen_pl.schedules import Linear
from imagen_pl.types import Growth
from tests.helpers.networks import small_discriminator, text_features
from tests.helpers.training import AtEachBatch, Remember, tiny_gan, train

pytestmark = pytest.mark.usefixtures("one_thread")


class Halves(Backbone):
    """Maps: the image, and its left half."""

    name, size = "halves", 8

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [images, images[..., : images.shape[-1] // 2]]

    def _read(self) -> torch.nn.Module:
        return torch.nn.Identity()

    def _channels(self, network: torch.nn.Module) -> tuple[int, ...]:
        return (3, 3)

    def _maps(self, network: torch.nn.Module, x: Tensor) -> list[Tensor]:
        return self(x)

    @property
    def _normalisation(self) -> Normalisation:
        return IMAGENET


def _images(seed: int, count: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _shown(fake: Tensor, real: Tensor | None) -> LossInputs:
    features = ImageFeatures({}, fake.flatten(1))
    return LossInputs(fake, features, text_features(len(fake)), Growth(8), real_images=real)


def _loss(term: LossTerm, fake: Tensor, real: Tensor | None) -> Tensor:
    return term(small_discriminator(), NonSaturating(), _shown(fake, real))


def test_pixel_matching_is_the_mean_distance_of_each_image() -> None:
    fake, real = _images(0), _images(1)

    loss = _loss(PixelMatching(), fake, real)

    for i in range(3):
        assert float(loss[i]) == pytest.approx(float((fake[i] - real[i]).abs().mean()), rel=1e-5)
    assert not _loss(PixelMatching(), real, real).any()


def test_perceptual_matching_is_the_distance_of_maps_by_their_size() -> None:
    fake, real = _images(0), _images(1)

    loss = _loss(PerceptualMatching(Halves()), fake, real)

    for i in range(3):
        maps = [(fake[i], real[i], real), (fake[i, ..., :4], real[i, ..., :4], real[..., :4])]
        terms = [float((a - b).abs().mean() / every.abs().mean()) for a, b, every in maps]
        assert float(loss[i]) == pytest.approx(sum(terms) / 2, rel=1e-5)


def test_share_of_the_batch_equals_the_smaller_batch() -> None:
    fake, real = _images(0, count=5), _images(1, count=5)

    loss = _loss(PerceptualMatching(Halves(), share=0.5), fake, real)

    assert torch.equal(loss, _loss(PerceptualMatching(Halves()), fake[:3], real[:3]))


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_share_is_above_0_and_at_most_1(share: float) -> None:
    with pytest.raises(ValueError, match=f"share {share} must be above 0 and at most 1"):
        PerceptualMatching(Halves(), share=share)


@pytest.mark.parametrize("term", [PixelMatching(), PerceptualMatching(TimmBackbone(size=32))])
def test_gradient_step_reduces_the_distance(term: LossTerm) -> None:
    fake, real = _images(0).requires_grad_(), _images(1)
    before = _loss(term, fake, real)
    (slope,) = torch.autograd.grad(before.sum(), fake)

    after = _loss(term, fake.detach() - 0.05 * slope.sign(), real)

    assert (after < before).all()


def test_frozen_network_is_not_a_submodule() -> None:
    term = PerceptualMatching(TimmBackbone(size=32))

    assert list(term.parameters()) == []
    assert term.state_dict() == {}


@pytest.mark.parametrize("term", [PixelMatching(), PerceptualMatching(Halves())])
def test_missing_real_images_raise(term: LossTerm) -> None:
    with pytest.raises(ValueError, match=r"(?i)matching compares: give the real images too"):
        _loss(term, _images(0), None)


def test_generated_images_are_paired_with_the_real_image_of_their_caption() -> None:
    """Faded as the generator's own; the weight follows its schedule."""
    served: list[Tensor] = []
    compared: list[tuple[Tensor, float]] = []

    class Watched(PixelMatching):
        def forward(self, discriminator, adversarial, inputs):  # type: ignore[no-untyped-def]
            assert inputs.real_images is not None
            compared.append((inputs.real_images, inputs.growth.fade))
            return super().forward(discriminator, adversarial, inputs)

    logged = Remember()
    weight = Linear(start=4.0, end=0.0, kimg=0.128)
    gan = tiny_gan(losses=[Watched(generator_weight=weight)])
    look = AtEachBatch(before=lambda gan, batch: served.append(batch.images))
    train(gan, 160, [look], logger=logged, log_every_n_steps=1)

    assert len(compared) == 16  # from 128 images on its weight is 0, and it is not computed
    for images, (real, fade) in zip(served, compared, strict=False):
        assert real.shape == images.shape
        if fade == 1:
            torch.testing.assert_close(real, images / 127.5 - 1)
        else:
            assert not torch.allclose(real, images / 127.5 - 1)
    assert 0 < sum(fade < 1 for _, fade in compared) < 16
    assert len(logged.column("train/g_pixel_matching")) >= 16
