"""ImageTextContrastive: its values and gradients, and its queue of captions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import NonSaturating, Relativistic
from imagen_pl.losses.base import LossInputs
from imagen_pl.losses.text_matching import (
    CaptionQueue,
    ImageTextContrastive,
)
from tests.helpers.networks import small_generator, text_features
from tests.helpers.text_matching import Dot, features_of, like_captions, matching_inputs

pytestmark = pytest.mark.usefixtures("one_thread")


def test_samples_with_the_same_caption_are_not_negatives_of_each_other() -> None:
    text = text_features(4)
    term = ImageTextContrastive(6, 6, 5)
    given = matching_inputs(like_captions(text, noise=0.5), text)
    given.captions = ["bell", "star", "bell", "bell"]

    loss = term(Dot(), Relativistic(), given)

    images = F.normalize(term.image(given.features.final), dim=1)
    captions = F.normalize(term.text(text.pooled), dim=1)
    similarity = images @ captions.T * 10
    kept = [0, 1]  # the first bell has the star alone as a negative
    by_image = F.cross_entropy(similarity[:1, kept], torch.tensor([0]))
    by_caption = F.cross_entropy(similarity.T[:1, kept], torch.tensor([0]))
    torch.testing.assert_close(loss[0], (by_image + by_caption) / 2)
    everything = F.cross_entropy(similarity[1:2], torch.tensor([1]))
    by_caption = F.cross_entropy(similarity.T[1:2], torch.tensor([1]))
    torch.testing.assert_close(loss[1], (everything + by_caption) / 2)


def queued(captions: list[str], seed: int) -> LossInputs:
    """A batch of captions whose text vectors follow from the captions alone."""
    draws = [torch.Generator().manual_seed(len(caption)) for caption in captions]
    pooled = torch.stack([torch.randn(6, generator=draw) for draw in draws])
    text = replace(text_features(len(captions)), pooled=pooled)
    final = torch.randn(len(captions), 6, generator=torch.Generator().manual_seed(seed))
    given = matching_inputs(features_of(final), text)
    given.captions = captions
    return given


def test_images_are_compared_with_the_captions_in_the_queue() -> None:
    torch.manual_seed(0)
    term = ImageTextContrastive(6, 6, 5, negatives=8)
    plain = ImageTextContrastive(6, 6, 5)
    plain.load_state_dict({key: value for key, value in term.state_dict().items() if "queue" not in key})
    first, second = queued(["bell", "bell", "stars"], 1), queued(["bell", "camera"], 2)

    torch.testing.assert_close(term(Dot(), Relativistic(), first), plain(Dot(), Relativistic(), first))
    loss = term(Dot(), Relativistic(), second)

    images = F.normalize(term.image(second.features.final), dim=1)
    rows = [second.text.pooled, first.text.pooled[[0, 2]]]
    similarity = images @ F.normalize(term.text(torch.cat(rows)), dim=1).T * 10
    similarity[0, 2] = -torch.inf  # the bell of the queue is no negative of the bell
    by_image = F.cross_entropy(similarity, torch.arange(2), reduction="none")
    by_caption = F.cross_entropy(similarity[:, :2].T, torch.arange(2), reduction="none")
    torch.testing.assert_close(loss, (by_image + by_caption) / 2)


def test_queue_holds_the_last_captions_of_real_images_once_a_batch() -> None:
    term = ImageTextContrastive(6, 6, 5, negatives=3)
    assert term.queue is not None
    term(Dot(), Relativistic(), queued(["a", "", "bb", "bb"], 1))
    generated = queued(["ccc", "dddd"], 2)
    generated.generator = small_generator()
    term(Dot(), Relativistic(), generated)
    term(Dot(), Relativistic(), queued(["ccc", "dddd"], 3))

    left_out = term.queue.left_out(["a", "bb", "ccc", "dddd"])

    torch.testing.assert_close(term.queue.vectors, queued(["dddd", "bb", "ccc"], 0).text.pooled)
    assert left_out.int().tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert CaptionQueue(2, 6).left_out(["a"]).all()  # empty


def test_queue_is_filled_before_the_backward_pass() -> None:
    term = ImageTextContrastive(6, 6, 5, negatives=4)
    term(Dot(), Relativistic(), queued(["a", "bb"], 1))

    term(Dot(), Relativistic(), queued(["ccc", "dddd"], 2)).mean().backward()

    assert term.queue is not None
    assert int(term.queue.added) == 4
    assert term.text.weight.grad is not None
    assert term.text.weight.grad.any()


def test_queue_is_part_of_the_checkpoint() -> None:
    term, resumed = (ImageTextContrastive(6, 6, 5, negatives=4) for _ in range(2))
    term(Dot(), Relativistic(), queued(["a", "bb"], 1))

    resumed.load_state_dict(term.state_dict())

    given = queued(["ccc", "dddd"], 2)
    torch.testing.assert_close(
        resumed(Dot(), Relativistic(), given), term(Dot(), Relativistic(), given), rtol=0, atol=0
    )


def test_negative_length_of_the_queue_is_refused() -> None:
    with pytest.raises(UserError, match=r"ImageTextContrastive\.negatives -1 must be 0 or more"):
        ImageTextContrastive(negatives=-1)


@pytest.fixture
def contrastive() -> ImageTextContrastive:
    """Image and text meet in the same six axes."""
    loss = ImageTextContrastive(image_dim=6, text_dim=6, embed_dim=6, temperature=0.1)
    for side in (loss.image, loss.text):
        torch.nn.init.eye_(side.weight)
        torch.nn.init.zeros_(side.bias)
    return loss


def test_contrastive_equals_cross_entropy_written_out(contrastive: ImageTextContrastive) -> None:
    text = text_features(4)
    seen = like_captions(text, noise=1.0)

    loss = contrastive(Dot(), NonSaturating(), matching_inputs(seen, text))

    for i in range(4):

        def logit(image: int, caption: int) -> float:
            return 10 * float(F.cosine_similarity(seen.final[image], text.pooled[caption], dim=0))

        by_image = -logit(i, i) + math.log(sum(math.exp(logit(i, j)) for j in range(4)))
        by_caption = -logit(i, i) + math.log(sum(math.exp(logit(j, i)) for j in range(4)))
        assert float(loss[i].detach()) == pytest.approx((by_image + by_caption) / 2, rel=1e-4)


def test_own_caption_has_the_lowest_contrastive_loss(contrastive: ImageTextContrastive) -> None:
    text = text_features(6)
    text.pooled = torch.eye(6)
    with torch.no_grad():
        losses = [
            float(
                contrastive(
                    Dot(), NonSaturating(), matching_inputs(features_of(torch.eye(6).roll(shift, 0)), text)
                ).mean()
            )
            for shift in range(6)
        ]

    assert losses[0] < 1e-3
    assert min(losses[1:]) > 5


def test_contrastive_gradients_pull_to_the_own_caption(
    contrastive: ImageTextContrastive,
) -> None:
    text = text_features(4)
    text.pooled = torch.eye(6)[:4]
    final = torch.full((4, 6), 0.3, requires_grad=True)

    (slope,) = torch.autograd.grad(
        contrastive(Dot(), NonSaturating(), matching_inputs(features_of(final), text)).sum(), final
    )

    towards = -(slope @ text.pooled.T)  # how far a step down the slope goes along each caption
    assert (towards.diagonal() > 0).all()
    assert (towards[~torch.eye(4, dtype=torch.bool)] < 0).all()


def test_contrastive_trains_its_own_parameters(contrastive: ImageTextContrastive) -> None:
    text = text_features(4)
    contrastive(Dot(), NonSaturating(), matching_inputs(like_captions(text, 1.0), text)).sum().backward()

    assert all(p.grad is not None and p.grad.any() for p in contrastive.parameters())


def test_contrastive_scale_is_at_most_100(contrastive: ImageTextContrastive) -> None:
    text = text_features(2)
    with torch.no_grad():
        contrastive.log_scale.fill_(50.0)
        loss = contrastive(Dot(), NonSaturating(), matching_inputs(features_of(text.roll().pooled), text))

    assert torch.isfinite(loss).all()
    assert loss.max() <= 200
