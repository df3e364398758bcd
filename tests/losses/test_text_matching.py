"""Losses that tie images to captions: their values and the direction of their gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import Hinge, NonSaturating, Relativistic
from imagen_pl.losses.base import LossInputs, LossTerm
from imagen_pl.losses.text_matching import (
    CaptionQueue,
    FeatureMatching,
    ImageTextContrastive,
    MismatchedCaptions,
)
from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.types import Growth, TextFeatures
from tests.helpers.networks import small_discriminator, small_generator, text_features

pytestmark = pytest.mark.usefixtures("one_thread")


class Dot(Discriminator):
    """Its logit is the product of the image's vector and the caption's."""

    resolutions, text_dim, final_dim = (4,), 6, 6

    def extract_features(self, images: Tensor, growth: Growth | None = None) -> ImageFeatures:
        return ImageFeatures({4: images}, images.flatten(1)[:, :6])

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Tensor:
        return (features.final * text.pooled).sum(1, keepdim=True)

    def blocks(self) -> dict[int, torch.nn.Module]:
        return {}


def _seen(final: Tensor, *maps: Tensor) -> ImageFeatures:
    return ImageFeatures({m.shape[-1]: m for m in maps}, final)


def inputs(
    features: ImageFeatures, text: TextFeatures, real_features: ImageFeatures | None = None
) -> LossInputs:
    return LossInputs(torch.zeros(len(text), 3, 4, 4), features, text, Growth(4), real_features=real_features)


def _like(text: TextFeatures, noise: float = 0.0) -> ImageFeatures:
    """Images whose vectors are their captions'."""
    draw = torch.Generator().manual_seed(3)
    return _seen(text.pooled + noise * torch.randn(text.pooled.shape, generator=draw))


@pytest.mark.parametrize("adversarial", [NonSaturating(), Hinge(), Relativistic()])
def test_mismatch_pairs_images_with_the_neighbour_s_caption(adversarial) -> None:  # type: ignore[no-untyped-def]
    text = text_features(4)
    seen = _like(text, noise=0.5)

    loss = MismatchedCaptions()(Dot(), adversarial, inputs(seen, text))

    own = (seen.final * text.pooled).sum(1, keepdim=True)
    wrong = torch.stack([seen.final[i] @ text.pooled[i - 1] for i in range(4)])[:, None]
    torch.testing.assert_close(loss, adversarial.discriminator(own, wrong))


def test_neighbours_with_the_same_caption_are_not_mismatched() -> None:
    text = text_features(4)
    given = inputs(_like(text, noise=0.5), text)
    without = MismatchedCaptions()(Dot(), Relativistic(), given)

    given.captions = ["bell", "bell", "star", "bell"]  # the last one is the first one's neighbour
    loss = MismatchedCaptions()(Dot(), Relativistic(), given)

    torch.testing.assert_close(loss, without * torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_mismatched_caption_can_be_the_nearest_other_one() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    vectors = F.pad(vectors, (0, 4))
    text = TextFeatures(vectors[:, None], torch.ones(5, 1, dtype=torch.bool), vectors)
    given = inputs(_like(text, noise=0.5), text)
    given.captions = ["bell", "bell, outline", "star", "star, outline", "bell"]

    loss = MismatchedCaptions(nearest=True)(Dot(), Relativistic(), given)

    seen = given.features.final
    own = (seen * text.pooled).sum(1, keepdim=True)
    wrong = (seen * text.pooled[[1, 3, 3, 1, 1]]).sum(1, keepdim=True)
    torch.testing.assert_close(loss, Relativistic().discriminator(own, wrong))


def test_mismatched_caption_can_differ_in_one_word() -> None:
    """Only where the training set has such a caption; elsewhere it is the neighbour's."""
    term, text = MismatchedCaptions(similar=1.0), text_features(4)
    given = inputs(_like(text, noise=0.5), text)
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
    given = inputs(_like(text, noise=0.5), text)
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
    given = inputs(_like(text), text)
    given.captions = ["bell"] * 3
    assert MismatchedCaptions(nearest=True)(Dot(), Relativistic(), given).tolist() == [0.0] * 3


def test_samples_with_the_same_caption_are_not_negatives_of_each_other() -> None:
    text = text_features(4)
    term = ImageTextContrastive(6, 6, 5)
    given = inputs(_like(text, noise=0.5), text)
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
    given = inputs(_seen(final), text)
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


def test_mismatch_loss_is_small_for_matching_captions() -> None:
    text = text_features(4)
    text.pooled = 3 * torch.eye(6)[:4]

    fits = MismatchedCaptions()(Dot(), Relativistic(), inputs(_like(text), text))
    swapped = MismatchedCaptions()(Dot(), Relativistic(), inputs(_like(text), text.roll()))

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
        MismatchedCaptions()(discriminator, Relativistic(), inputs(seen, text)).mean().backward()
        optimizer.step()

    assert (margin() > 1).all(), margin()


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
    seen = _like(text, noise=1.0)

    loss = contrastive(Dot(), NonSaturating(), inputs(seen, text))

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
                contrastive(Dot(), NonSaturating(), inputs(_seen(torch.eye(6).roll(shift, 0)), text)).mean()
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
        contrastive(Dot(), NonSaturating(), inputs(_seen(final), text)).sum(), final
    )

    towards = -(slope @ text.pooled.T)  # how far a step down the slope goes along each caption
    assert (towards.diagonal() > 0).all()
    assert (towards[~torch.eye(4, dtype=torch.bool)] < 0).all()


def test_contrastive_trains_its_own_parameters(contrastive: ImageTextContrastive) -> None:
    text = text_features(4)
    contrastive(Dot(), NonSaturating(), inputs(_like(text, 1.0), text)).sum().backward()

    assert all(p.grad is not None and p.grad.any() for p in contrastive.parameters())


def test_contrastive_scale_is_at_most_100(contrastive: ImageTextContrastive) -> None:
    text = text_features(2)
    with torch.no_grad():
        contrastive.log_scale.fill_(50.0)
        loss = contrastive(Dot(), NonSaturating(), inputs(_seen(text.roll().pooled), text))

    assert torch.isfinite(loss).all()
    assert loss.max() <= 200


def test_feature_matching_is_zero_where_both_are_the_same() -> None:
    discriminator, text = small_discriminator(), text_features(4)
    seen = discriminator.extract_features(torch.randn(4, 3, 16, 16))

    assert not FeatureMatching()(discriminator, Relativistic(), inputs(seen, text, seen)).any()


def test_feature_matching_equals_its_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    mine, theirs = (
        _seen(
            torch.randn(2, 6, generator=draw),
            torch.randn(2, 3, 8, 8, generator=draw),
            7 * torch.randn(2, 5, 4, 4, generator=draw),
        )
        for _ in range(2)
    )

    loss = FeatureMatching()(Dot(), Relativistic(), inputs(mine, text_features(2), theirs))

    pairs = [(mine.maps[8], theirs.maps[8]), (mine.maps[4], theirs.maps[4]), (mine.final, theirs.final)]
    for i in range(2):
        terms = [float((a[i] - b[i]).abs().mean() / b.abs().mean()) for a, b in pairs]
        assert float(loss[i]) == pytest.approx(sum(terms) / 3, rel=1e-5)


def test_feature_matching_pulls_generated_to_real_features() -> None:
    real = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    fake = torch.zeros(2, 6, requires_grad=True)

    loss = FeatureMatching()(Dot(), Relativistic(), inputs(_seen(fake), text_features(2), _seen(real)))
    (slope,) = torch.autograd.grad(loss.sum(), fake)

    assert torch.equal(slope.sign(), -real.sign())


def test_feature_matching_is_finite_beside_dead_features() -> None:
    seen, dead = _seen(torch.ones(2, 6)), _seen(torch.zeros(2, 6))
    loss = FeatureMatching()(Dot(), Relativistic(), inputs(seen, text_features(2), dead))

    assert torch.isfinite(loss).all()


def test_feature_matching_needs_real_features() -> None:
    text = text_features(2)
    with pytest.raises(ValueError, match=r"feature matching compares: it needs inputs\.real_features"):
        FeatureMatching()(Dot(), Relativistic(), inputs(_like(text), text))


@pytest.mark.parametrize(
    ("loss", "name", "needs_pairs", "weights"),
    [
        (MismatchedCaptions(), "mismatch", False, (1.0, 0.0)),
        (MismatchedCaptions(0.5, 0.25), "mismatch", False, (0.5, 0.25)),
        (ImageTextContrastive(), "contrastive", False, (1.0, 1.0)),
        (FeatureMatching(3.0), "feature_matching", True, (0.0, 3.0)),
    ],
)
def test_each_term_has_its_name_weights_and_needs_pairs_flag(
    loss: LossTerm, name: str, needs_pairs: bool, weights: tuple[float, float]
) -> None:
    assert (loss.name, loss.needs_pairs) == (name, needs_pairs)
    assert (loss.discriminator_weight, loss.generator_weight) == weights
