"""Projection: pictures of the model's own are found again, and words can be changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.inference.projection import (
    drawn_with,
    mean_style,
    normalized,
    perceptual_distance,
    project,
    projectable,
    psnr,
    reworded,
)
from imagen_pl.models.generators.dcgan import DCGANGenerator
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.types import Growth, TextFeatures
from tests.helpers.fakes import TinyBackbone
from tests.helpers.networks import awaken, small_generator, text_features

pytestmark = pytest.mark.usefixtures("one_thread")
GROWN = Growth(16)


@pytest.fixture
def generator() -> StyleGenerator:
    made = small_generator(style_dim=16)
    awaken(made)
    return made.eval().requires_grad_(False)


@pytest.fixture
def own(generator: StyleGenerator) -> tuple[Tensor, TextFeatures, Tensor]:
    """Styles of three latents, their captions, and the images."""
    text, z = text_features(3), torch.randn(3, 5, generator=torch.Generator().manual_seed(4))
    styles = generator.style(z, text)
    return styles, text, drawn_with(generator, styles[:, None], text, GROWN)


def find(generator: StyleGenerator, images: Tensor, text: TextFeatures, **settings: object) -> Tensor:
    return project(generator, images, text, GROWN, TinyBackbone(), **settings)  # type: ignore[arg-type]


def test_own_styles_are_found_again(
    generator: StyleGenerator, own: tuple[Tensor, TextFeatures, Tensor]
) -> None:
    styles, text, images = own
    start = mean_style(generator, text, torch.Generator().manual_seed(0))

    found = find(generator, images, text, steps=400, per_resolution=False)

    assert found.shape == (3, 1, 16)
    assert psnr(drawn_with(generator, found, text, GROWN), images).min() > 35
    near = torch.cosine_similarity(found[:, 0], styles)
    assert (near > torch.cosine_similarity(start, styles)).all()
    assert near.min() > 0.97


def test_one_style_for_each_resolution_comes_nearer_to_foreign_pictures(generator: StyleGenerator) -> None:
    text = text_features(3)
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1)).repeat_interleave(4, 2)
    images = 2 * images.repeat_interleave(4, 3) - 1
    scores = {}
    for per_resolution in (False, True):
        found = find(generator, images, text, steps=150, per_resolution=per_resolution)
        scores[per_resolution] = psnr(drawn_with(generator, found, text, GROWN), images).mean()
    assert found.shape == (3, 3, 16)
    assert scores[True] > scores[False] + 0.3


def test_styles_keep_the_length_of_the_mappings_and_the_search_repeats(
    generator: StyleGenerator, own: tuple[Tensor, TextFeatures, Tensor]
) -> None:
    _, text, images = own
    seen: list[int] = []

    found = find(generator, images, text, steps=5, on_step=lambda step, drawn: seen.append(step))

    torch.testing.assert_close(found.mean(-1), torch.zeros(3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.var(-1, correction=0), torch.ones(3, 3), atol=1e-3, rtol=0)
    assert seen == [1, 2, 3, 4, 5]
    assert torch.equal(find(generator, images, text, steps=5), found)
    assert not torch.equal(find(generator, images, text, steps=5, seed=1), found)
    alone = find(generator, images[:1], text[:1], steps=5)
    torch.testing.assert_close(alone, found[:1], atol=1e-4, rtol=1e-4)


def test_one_style_or_as_many_equal_ones_draw_the_same(
    generator: StyleGenerator, own: tuple[Tensor, TextFeatures, Tensor]
) -> None:
    styles, text, images = own
    assert torch.equal(drawn_with(generator, styles[:, None], text, GROWN), images)
    assert torch.equal(drawn_with(generator, styles[:, None].repeat(1, 3, 1), text, GROWN), images)
    mixed = torch.stack([styles, styles, styles.flip(0)], 1)
    assert not torch.allclose(drawn_with(generator, mixed, text, GROWN), images, atol=1e-3)


def test_rewording_goes_by_the_mean_styles_of_both_captions(generator: StyleGenerator) -> None:
    before, after = text_features(2), text_features(2, seed=9)
    styles = torch.randn(2, 3, 16)

    def mean(text: TextFeatures) -> Tensor:
        return mean_style(generator, text, torch.Generator().manual_seed(3))

    moved = reworded(generator, styles, before, after, seed=3)

    torch.testing.assert_close(moved, normalized(styles + (mean(after) - mean(before))[:, None]))
    torch.testing.assert_close(reworded(generator, styles, before, before), normalized(styles))


def test_mean_style_is_over_latents(generator: StyleGenerator) -> None:
    text = text_features(2)
    z = torch.randn(256, 5, generator=torch.Generator().manual_seed(0))
    expected = generator.style(z, text[torch.ones(256, dtype=torch.int64)]).mean(0)
    torch.testing.assert_close(mean_style(generator, text, torch.Generator().manual_seed(0))[1], expected)


def test_psnr_is_by_the_range_of_two() -> None:
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 2.0)])
    torch.testing.assert_close(psnr(a, b), torch.tensor([20.0, 0.0]))
    from torchmetrics.functional.image import peak_signal_noise_ratio

    x, y = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(psnr(2 * x - 1, 2 * y - 1)[0], peak_signal_noise_ratio(x, y, data_range=1.0))


def test_perceptual_distance_is_between_features_of_unit_length() -> None:
    backbone = TinyBackbone()
    a, b = (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    expected = torch.zeros(2)
    for u, v in zip(backbone(a), backbone(b), strict=True):
        for i in range(2):
            for y in range(u.shape[2]):
                for x in range(u.shape[3]):
                    difference = u[i, :, y, x] / u[i, :, y, x].norm() - v[i, :, y, x] / v[i, :, y, x].norm()
                    expected[i] += difference.square().sum() / (u.shape[2] * u.shape[3])
    torch.testing.assert_close(perceptual_distance(backbone, a, b), expected)
    assert perceptual_distance(backbone, a, a).max() < 1e-6


def test_a_generator_without_styles_is_refused() -> None:
    with pytest.raises(UserError, match="is a DCGANGenerator, which has no styles"):
        projectable(DCGANGenerator({4: 8, 8: 3}))
