"""The energy distance between the generated and the real images of each caption."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imagen_pl.losses.adversarial import Relativistic
from imagen_pl.losses.base import LossInputs
from imagen_pl.losses.caption_distributions import EnergyMatching, StyleMatching, energy_distances
from imagen_pl.models.discriminators.base import ImageFeatures
from imagen_pl.models.pretrained.backbones import TimmBackbone
from imagen_pl.types import Growth
from tests.helpers.networks import small_discriminator, text_features

pytestmark = pytest.mark.usefixtures("one_thread")


def equal_captions(*ids: int) -> Tensor:
    numbers = torch.tensor(ids)
    return numbers[:, None] == numbers


def distances(generated: Tensor, real: Tensor, equal: Tensor) -> Tensor:
    """Energy distances where no row is compared with its own real image alone."""
    return energy_distances(generated, real, equal, torch.zeros(len(real), dtype=torch.bool))


def given(generated: list[Tensor], real: list[Tensor], captions: list[str]) -> LossInputs:
    features, real_features = (
        ImageFeatures({}, torch.zeros(len(captions), 1), frozen=x) for x in (generated, real)
    )
    images = torch.zeros(len(captions), 3, 4, 4)
    text = text_features(len(captions))
    return LossInputs(images, features, text, Growth(4), captions, real_features, images)


def test_distance_written_out() -> None:
    """Two captions of two rows on a line, and one that is alone."""
    generated = torch.tensor([[0.0], [1.0], [10.0], [12.0], [99.0]])
    real = torch.tensor([[2.0], [3.0], [10.0], [10.0], [5.0]])

    found = distances(generated, real, equal_captions(0, 0, 1, 1, 2))

    scale = (real - real.T).abs().mean()
    expected = torch.tensor([2.5 - 0.5, 1.5 - 0.5, 0.0 - 1.0, 2.0 - 1.0, 0.0])
    torch.testing.assert_close(found, expected / scale)


def test_descent_finds_both_modes_of_a_caption_where_a_paired_loss_finds_their_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    equal = equal_captions(0, 0, 0, 0)
    start = torch.randn(4, 2, generator=draw)

    def descend(energy: bool) -> Tensor:
        points = start.clone().requires_grad_()
        optimizer = torch.optim.SGD([points], lr=0.05)
        for _ in range(800):
            signs = torch.tensor([1.0, 1.0, -1.0, -1.0])[torch.randperm(4, generator=draw)]
            real = torch.stack([signs * 3, torch.zeros(4)], 1) + 0.1 * torch.randn(4, 2, generator=draw)
            paired = (points - real).square().sum(1)
            optimizer.zero_grad()
            (distances(points, real, equal) if energy else paired).sum().backward()
            optimizer.step()
        return points.detach()

    found, means = descend(energy=True), descend(energy=False)

    assert sorted(round(x) for x in (found[:, 0] / 3).tolist()) == [-1, -1, 1, 1]
    assert means.abs().max() < 2


def test_expectation_is_smallest_for_the_distribution_of_the_real_images() -> None:
    draw = torch.Generator().manual_seed(1)

    def mean(spread: float, shift: float) -> float:
        sums = []
        for _ in range(500):
            generated = shift + spread * torch.randn(4, 3, generator=draw)
            real = torch.randn(4, 3, generator=draw)
            sums.append(distances(generated, real, equal_captions(0, 0, 0, 0)))
        return float(torch.cat(sums).mean())

    right = mean(1.0, 0.0)
    assert right + 0.02 < min(mean(0.0, 0.0), mean(0.4, 0.0), mean(2.0, 0.0), mean(1.0, 0.7))


def test_discriminator_s_frozen_maps_are_compared() -> None:
    draw = torch.Generator().manual_seed(2)
    generated = [torch.randn(4, 2, 3, 3, generator=draw), torch.randn(4, 5, 1, 1, generator=draw)]
    real = [torch.randn_like(x) for x in generated]
    captions = ["bell", "bell", "star", "star"]

    loss = EnergyMatching()(small_discriminator(), Relativistic(), given(generated, real, captions))

    equal = equal_captions(0, 0, 1, 1)
    each = [distances(a.flatten(1), b.flatten(1), equal) for a, b in zip(generated, real, strict=True)]
    torch.testing.assert_close(loss, (each[0] + each[1]) / 2)


def test_own_backbone_gives_a_gradient_to_the_images() -> None:
    draw = torch.Generator().manual_seed(3)
    term = EnergyMatching(TimmBackbone("efficientnet_lite0", size=16, maps=[0, 1]))
    inputs = given([], [], ["bell", "bell", "star"])
    inputs.images = torch.randn(3, 3, 16, 16, generator=draw).requires_grad_()
    inputs.real_images = torch.randn(3, 3, 16, 16, generator=draw)

    term(small_discriminator(), Relativistic(), inputs).sum().backward()

    assert inputs.images.grad is not None
    assert inputs.images.grad.isfinite().all()
    assert inputs.images.grad.flatten(1).any(1).tolist() == [True, True, False]


def test_a_backbone_is_needed() -> None:
    with pytest.raises(
        ValueError, match=r"EnergyMatching\.backbone is not given, and the discriminator has none"
    ):
        EnergyMatching().check(small_discriminator())


def test_statistics_do_not_depend_on_places() -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(4))
    mean, deviation = StyleMatching().vectors(x).split(3, 1)
    torch.testing.assert_close(mean, x.mean((2, 3)))
    torch.testing.assert_close(deviation, x.flatten(2).std(2, correction=0))
    torch.testing.assert_close(StyleMatching().vectors(x.flip(2).roll(1, 3)), StyleMatching().vectors(x))


def test_style_of_a_single_image_is_compared_if_its_caption_names_attributes() -> None:
    draw = torch.Generator().manual_seed(5)
    generated, real = (torch.randn(4, 2, 3, 3, generator=draw) for _ in range(2))
    captions = ["bell, outline", "bell, outline", "star, Tabler Icons, outline", "zither"]

    loss = StyleMatching(single_images=True)(
        small_discriminator(), Relativistic(), given([generated], [real], captions)
    )

    a, b = StyleMatching().vectors(generated), StyleMatching().vectors(real)
    torch.testing.assert_close(loss[:2], distances(a, b, equal_captions(0, 0, 1, 2))[:2])
    scale = torch.cdist(b, b).mean()
    torch.testing.assert_close(loss[2], (a[2] - b[2]).norm() / scale)
    assert loss[3] == 0


def test_single_images_are_targets_where_a_caption_with_attributes_has_one_image() -> None:
    draw = torch.Generator().manual_seed(6)
    generated, real = (torch.randn(4, 2, 3, 3, generator=draw) for _ in range(2))
    inputs = given([generated], [real], ["fox", "fox", "cupcake, fluent style", "rocket"])
    without, with_them = (
        EnergyMatching(single_images=single)(small_discriminator(), Relativistic(), inputs)
        for single in (False, True)
    )
    a, b = generated.flatten(1), real.flatten(1)
    assert without[2:].tolist() == [0.0, 0.0]
    # The distance of an image to itself is zero up to rounding, which differs between CPUs.
    expected = (a[2] - b[2]).norm() / torch.cdist(b, b, compute_mode="donot_use_mm_for_euclid_dist").mean()
    torch.testing.assert_close(with_them[2], expected, rtol=1e-4, atol=0)
    assert with_them[3] == 0
    assert with_them[:2].equal(without[:2])


def test_style_of_identical_images_has_finite_gradients() -> None:
    """A constant map has no deviation, and equal images no distance."""
    generated = torch.zeros(3, 2, 3, 3, requires_grad=True)
    inputs = given([generated], [torch.zeros(3, 2, 3, 3)], ["bell, line", "bell, line", "star, line"])
    StyleMatching(single_images=True)(small_discriminator(), Relativistic(), inputs).sum().backward()
    assert generated.grad is not None
    assert generated.grad.isfinite().all()
