"""A captioner that reads augmented copies of a sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.losses.captioning import Captioning
from imagen_pl.models.augment import Augment
from imagen_pl.models.captioner.image_features import DiscriminatorFeatures
from tests.helpers.captioners import tiny_captioner, tiny_captioning
from tests.helpers.networks import small_discriminator
from tests.losses.test_captioning import inputs

pytestmark = pytest.mark.usefixtures("one_thread")


class Redder(Augment):
    """Adds i to the red channel of image i of a batch."""

    def forward(self, images: Tensor, seed: int | None = None) -> Tensor:
        return images + torch.tensor([1.0, 0, 0]).view(3, 1, 1) * torch.arange(len(images)).view(-1, 1, 1, 1)


def teach(term: Captioning) -> Tensor:
    return term(small_discriminator(), NonSaturating(), inputs())


def test_loss_is_the_mean_over_the_augmented_copies() -> None:
    given = inputs()
    found = teach(tiny_captioning(augment=Redder(), copies=2))
    captioner = tiny_captioner().eval()
    views = Redder()(given.images.repeat(2, 1, 1, 1))
    each = captioner.cross_entropy(captioner.extract_features(views), given.captions * 2)
    torch.testing.assert_close(found, (each[:8] + each[8:]) / 2)
    assert not torch.allclose(found, teach(tiny_captioning()))


def test_contrast_reads_the_augmented_copies_too() -> None:
    plain, changed = tiny_captioning(contrast=2.0), tiny_captioning(contrast=2.0, augment=Redder(), copies=3)
    for term in (plain, changed):
        term.prepare(lambda: ["a hat", "a sun", "red heart", "blue heart"])
    assert teach(changed).shape == teach(plain).shape == (8,)
    assert changed.take_notes().keys() == {"unweighted", "prefers_own"}


def test_real_images_are_augmented_once() -> None:
    given, term = inputs(), tiny_captioning(augment=Redder(), copies=2)
    captioner = tiny_captioner()
    memory = captioner.extract_features(Redder()(given.images))
    torch.testing.assert_close(term.training_loss(given), captioner.cross_entropy(memory, given.captions))


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match=r"captioning\.copies 2 must be 1, or more together with .*augment"):
        tiny_captioning(copies=2)
    with pytest.raises(UserError, match=r"captioning\.copies 0 must be 1"):
        tiny_captioning(augment=Redder(), copies=0)
    with pytest.raises(UserError, match=r"augment needs a captioner with its own image features"):
        tiny_captioning(tiny_captioner(features=DiscriminatorFeatures(8)), augment=Redder())
