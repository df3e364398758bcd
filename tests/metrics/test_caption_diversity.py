"""Diversity by caption: against known variances, and its floors and ceilings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imagen_pl.metrics.caption_diversity import caption_diversity, latent_share

pytestmark = pytest.mark.usefixtures("one_thread")


def images(captions: int, pictures: int, within: float, seed: int) -> Tensor:
    """Features around a centre of each caption; the centres do not depend on `seed`."""
    centres = torch.randn(captions, 1, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(captions, pictures, 16, generator=torch.Generator().manual_seed(seed))
    return centres + within * noise


def test_other_real_images_score_one() -> None:
    found = caption_diversity(images(40, 8, 0.5, 1), images(40, 16, 0.5, 2))
    assert found.captions == 40
    assert found.diversity == pytest.approx(1.0, abs=3 * found.diversity_error)
    assert found.diversity_error < 0.05
    assert found.precision > 0.5
    assert found.coverage > 0.6


def test_one_image_a_caption_has_no_diversity() -> None:
    same = images(40, 1, 0.5, 1).expand(-1, 8, -1)
    found = caption_diversity(same, images(40, 16, 0.5, 2))
    assert found.diversity == pytest.approx(0, abs=1e-6)
    assert found.latent_share == pytest.approx(0, abs=1e-9)
    assert found.coverage < 0.3  # the neighbours of one image


def test_images_of_other_captions_have_no_precision() -> None:
    wrong = images(40, 8, 0.1, 1).roll(1, 0)
    found = caption_diversity(wrong, images(40, 16, 0.1, 2))
    assert found.diversity == pytest.approx(1.0, abs=0.1)
    assert found.precision == found.coverage == 0


@pytest.mark.parametrize("within", [0.1, 0.5, 1.0, 3.0])
def test_latent_share_is_the_share_of_the_variance_within_captions(within: float) -> None:
    share = latent_share(images(400, 4, within, 1))
    assert share == pytest.approx(within**2 / (1 + within**2), rel=0.1)
