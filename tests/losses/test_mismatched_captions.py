"""MismatchedCaptions: which caption is the wrong one, and what it teaches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import Hinge, NonSaturating, Relativistic
from imagen_pl.losses.text_matching import (
    MismatchedCaptions,
)
from imagen_pl.types import TextFeatures
from tests.helpers.networks import small_discriminator, text_features
from tests.helpers.text_matching import Dot, like_captions, matching_inputs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("adversarial", [NonSaturating(), Hinge(), Relativistic()])
def test_mismatch_pairs_images_with_the_neighbour_s_caption(adversarial) -> None:  # type: ignore[no-untyped-def]
    text = text_features(4)
    seen = like_captions(text, noise=0.5)

    loss = MismatchedCaptions()(Dot(), adversarial, matching_inputs(seen, text))

    own = (seen.final * text.pooled).sum(1, keepdim=True)
    wrong = torch.stack([seen.final[i] @ text.pooled[i - 1] for i in range(4)])[:, None]
    torch.testing.assert_close(loss, adversarial.discriminator(own, wrong))


def test_neighbours_with_the_same_caption_are_not_mismatched() -> None:
    text = text_features(4)
    given = matching_inputs(like_captions(text, noise=0.5), text)
    without = MismatchedCaptions()(Dot(), Relativistic(), given)

    given.captions = ["bell", "bell", "star", "bell"]  # the last one is the first one's neighbour
    loss = MismatchedCaptions()(Dot(), Relativistic(), given)

    torch.testing.assert_close(loss, without * torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_mismatched_caption_can_be_the_nearest_other_one() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    vectors = F.pad(vectors, (0, 4))
    text = TextFeatures(vectors[:, None], torch.ones(5, 1, dtype=torch.bool), vectors)
    given = matching_inputs(like_captions(text, noise=0.5), text)
    given.captions = ["bell", "bell, outline", "star", "star, outline", "bell"]

    loss = MismatchedCaptions(nearest=True)(Dot(), Relativistic(), given)

    seen = given.features.final
    own = (seen * text.pooled).sum(1, keepdim=True)
    wrong = (seen * text.pooled[[1, 3, 3, 1, 1]]).sum(1, keepdim=True)
    torch.testing.assert_close(loss, Relativistic().discriminator(own, wrong))


def test_mismatched_caption_can_differ_in_one_word() -> None:
    """Only where the training set has such a caption; elsewhere it is the neighbour's."""
    term, text = MismatchedCaptions(similar=1.0), text_features(4)
    given = matching_inputs(like_captions(text, noise=0.5), text)
    given.captions = ["bell", "bell", "star", "moon"]
    other, asked = text_features(4, seed=9), []

    def encode(captions: list[str]) -> TextFeatures:
        asked.append(captions)
        return other

    given.encode = encode
    term.prepare(lambda: ["bell", "bell off", "star", "moon"])
    loss = term(Dot(), Relativistic(), given)

    assert asked == [["bell off", "bell off", "bell", "star"]]
    seen = given.features.final
    own, wrong = ((seen * each.pooled).sum(1, keepdim=True) for each in (text, other))
    torch.testing.assert_close(loss, Relativistic().discriminator(own, wrong))
    with pytest.raises(UserError, match=r"MismatchedCaptions.similar 2 must be from 0 to 1"):
        MismatchedCaptions(similar=2)


def test_a_share_of_the_mismatched_captions_is_similar() -> None:
    term, text = MismatchedCaptions(similar=0.25), text_features(4)
    given = matching_inputs(like_captions(text, noise=0.5), text)
    given.captions = ["bell", "bell off", "star", "moon"]
    asked: list[str] = []
    given.encode = lambda captions: asked.extend(captions) or text  # type: ignore[func-returns-value]
    term.prepare(lambda: given.captions)
    torch.manual_seed(0)
    for _ in range(200):
        term(Dot(), Relativistic(), given)

    # The others asked for nothing: both captions of the batch were the neighbours'.
    assert 60 < len(asked) / 4 < 115  # 200 * (1 - 0.75 ** 2) = 87.5
    assert 30 < sum(asked[i] == "bell off" for i in range(0, len(asked), 4)) < 70  # 200 * 0.25 = 50


def test_batch_of_one_caption_has_no_mismatch() -> None:
    text = text_features(3)
    given = matching_inputs(like_captions(text), text)
    given.captions = ["bell"] * 3
    assert MismatchedCaptions(nearest=True)(Dot(), Relativistic(), given).tolist() == [0.0] * 3


def test_mismatch_loss_is_small_for_matching_captions() -> None:
    text = text_features(4)
    text.pooled = 3 * torch.eye(6)[:4]

    fits = MismatchedCaptions()(Dot(), Relativistic(), matching_inputs(like_captions(text), text))
    swapped = MismatchedCaptions()(Dot(), Relativistic(), matching_inputs(like_captions(text), text.roll()))

    torch.testing.assert_close(fits, F.softplus(torch.full((4,), -9.0)))
    assert swapped.min() > fits.max()


def test_mismatch_trains_the_discriminator_to_use_captions() -> None:
    discriminator = small_discriminator()
    images, text = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), text_features(4)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)

    def margin() -> Tensor:
        with torch.no_grad():
            seen = discriminator.extract_features(images)
            return (discriminator.logits(seen, text) - discriminator.logits(seen, text.roll())).mean(1)

    for _ in range(25):
        optimizer.zero_grad()
        seen = discriminator.extract_features(images)
        MismatchedCaptions()(discriminator, Relativistic(), matching_inputs(seen, text)).mean().backward()
        optimizer.step()

    assert (margin() > 1).all(), margin()
