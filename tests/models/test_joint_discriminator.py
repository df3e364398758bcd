"""JointDiscriminator: several discriminators, each with its share of the loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import AdversarialLoss, Hinge, NonSaturating, Relativistic
from imagen_pl.losses.base import LossInputs
from imagen_pl.losses.gradient_penalties import R1, R2
from imagen_pl.losses.image_matching import PerceptualMatching
from imagen_pl.losses.text_matching import FeatureMatching, ImageTextContrastive, MismatchedCaptions
from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.models.discriminators.joint import JointDiscriminator
from imagen_pl.models.discriminators.multiscale import MultiscaleDiscriminator
from imagen_pl.models.discriminators.projected import ProjectedDiscriminator
from imagen_pl.models.pretrained.backbones import TimmBackbone
from imagen_pl.types import Growth, TextFeatures
from tests.helpers.networks import small_discriminator, text_features
from tests.helpers.training import SHORT, Remember, SaveAt, assert_same, tiny_gan, train, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")
BACKBONE = TimmBackbone("efficientnet_lite0", size=16, maps=[0, 1, 2])
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def projected(resolutions: list[int], text_dim: int = 6) -> ProjectedDiscriminator:
    torch.manual_seed(3)
    return ProjectedDiscriminator(BACKBONE, resolutions, text_dim, final_dim=4, head_channels=8)


def joint(shares: list[int] | None = None) -> JointDiscriminator:
    """Three heads of its own and three of frozen features."""
    return JointDiscriminator([small_discriminator(), projected([4, 8, 16])], shares)


class Fixed(Discriminator):
    """Gives the logits that it was made with."""

    resolutions, text_dim, final_dim = (16,), 6, 1

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(logits))

    def extract_features(self, images: Tensor, growth: Growth | None = None) -> ImageFeatures:
        return ImageFeatures({}, images[:, 0, 0, :1])

    def logits(self, features: ImageFeatures, text: TextFeatures) -> Tensor:
        return self.values.expand(len(text), -1)

    def blocks(self) -> dict[int, nn.Module]:
        return {}


def test_logits_come_from_all_and_features_from_the_first() -> None:
    both, text = joint().eval(), text_features()
    first, second = both.discriminators

    seen = both.extract_features(IMAGES)
    logits = both.logits(seen, text)

    alone = first.extract_features(IMAGES)
    assert torch.equal(seen.final, alone.final)
    assert_same(seen.maps, alone.maps)
    assert torch.equal(logits, torch.cat([first(IMAGES, text), second(IMAGES, text)], dim=1))
    assert both.final_dim == first.final_dim
    assert both.map_channels == first.map_channels
    assert both.blocks() == first.blocks()
    assert both.resolutions == (4, 8, 16)


def test_detached_features_give_the_same_logits_without_a_graph() -> None:
    both, text = joint().eval(), text_features()
    features = both.extract_features(IMAGES.clone().requires_grad_())

    detached = features.detach()

    assert type(detached) is type(features)
    assert features.final.requires_grad
    assert not detached.final.requires_grad
    assert not any(each.requires_grad for each in detached.maps.values())
    assert torch.equal(both.logits(detached, text), both.logits(features, text))


def test_perceptual_matching_reuses_the_discriminator_s_features() -> None:
    """Values and gradients equal those with a backbone of its own."""
    both, text = joint().eval(), text_features()
    fakes = [IMAGES.flip(0).requires_grad_() for _ in range(2)]
    real = both.extract_features(IMAGES)

    losses = [
        term(
            both,
            NonSaturating(),
            LossInputs(fake, both.extract_features(fake), text, Growth(16), [], real, IMAGES),
        )
        for term, fake in zip((PerceptualMatching(), PerceptualMatching(BACKBONE)), fakes, strict=True)
    ]
    slopes = [torch.autograd.grad(loss.sum(), fake)[0] for loss, fake in zip(losses, fakes, strict=True)]

    assert torch.equal(*losses)
    assert losses[0].min() > 0
    assert torch.equal(*slopes)
    assert PerceptualMatching().needs_pairs
    assert not PerceptualMatching(BACKBONE).needs_pairs


def test_perceptual_matching_gets_real_features_with_any_adversarial_loss() -> None:
    logged = Remember()
    term = PerceptualMatching()
    logit_fn = projected([8, 16, 32], 16)
    gan = tiny_gan(
        discriminator=logit_fn, adversarial=NonSaturating(), penalties=[], losses=[term], accumulate=2
    )
    train(gan, 16, stages=SHORT, logger=logged, log_every_n_steps=1)
    logged_losses = logged.column("train/g_perceptual_matching")
    assert logged_losses
    assert all(value > 0 for value in logged_losses.values())


def test_perceptual_matching_needs_a_frozen_network() -> None:
    PerceptualMatching().check(joint())
    PerceptualMatching().check(projected([4, 8, 16]))
    PerceptualMatching(BACKBONE).check(small_discriminator())
    with pytest.raises(ValueError, match=r"PerceptualMatching\.backbone is not given"):
        tiny_gan(losses=[PerceptualMatching()])


@pytest.mark.parametrize("adversarial", [NonSaturating(), Hinge(), Relativistic()])
@pytest.mark.parametrize(("shares", "expected"), [(None, [1 / 2, 1 / 2]), ([3, 1], [3 / 4, 1 / 4])])
def test_each_has_its_share_of_the_loss(
    adversarial: AdversarialLoss, shares: list[int] | None, expected: list[float]
) -> None:
    """Whatever the number of heads: one and three here."""
    parts: list[Discriminator] = [Fixed(0.3), Fixed(-0.2, 0.1, 0.4)]
    both, text = JointDiscriminator(parts, shares), text_features()
    fakes = [torch.full((4, 1), -0.5), torch.tensor([[0.0, 0.2, -0.1]]).expand(4, 3)]
    seen = both.extract_features(IMAGES)
    fake = JointDiscriminator([Fixed(*f[0].tolist()) for f in fakes], shares).logits(seen, text)

    loss = adversarial.discriminator(both.logits(seen, text), fake)

    own = [
        adversarial.discriminator(part.logits(seen, text), f) for part, f in zip(parts, fakes, strict=True)
    ]
    torch.testing.assert_close(loss, expected[0] * own[0] + expected[1] * own[1])


def test_penalties_and_matching_use_the_first() -> None:
    both, text = joint(), text_features()
    first = both.first
    images = IMAGES.clone().requires_grad_()

    assert both.penalizable
    assert torch.equal(both.penalized_logits(images, text), first.penalized_logits(images, text))
    R1(1.0)(both.penalized_logits, images, images, text).sum().backward()
    assert all(p.grad is None for p in both.discriminators[1].parameters())
    assert any(p.grad is not None and p.grad.any() for p in first.parameters())


def test_gradients_of_both_reach_the_images() -> None:
    both, text = joint(), text_features()
    slopes = []
    for columns in (slice(0, 3), slice(3, 6)):
        images = IMAGES.clone().requires_grad_()
        both(images, text)[:, columns].sum().backward()
        assert images.grad is not None
        slopes.append(images.grad)
    assert all(slope.flatten(1).any(1).all() for slope in slopes)
    first, second = slopes
    assert not torch.allclose(first, second)


def test_mismatched_discriminators_raise() -> None:
    with pytest.raises(
        UserError, match=r"discriminators\[1\]\.resolutions is \(8, 16\), the first one's \(4,"
    ):
        JointDiscriminator([small_discriminator(), projected([8, 16])])
    with pytest.raises(UserError, match=r"discriminators\[1\]\.text_dim is 7, the first one's 6"):
        JointDiscriminator([small_discriminator(), projected([4, 8, 16], text_dim=7)])
    for shares in ([1], [1, 0], []):
        with pytest.raises(UserError, match=r"discriminator\.shares \["):
            joint(shares)
    with pytest.raises(UserError, match=r"discriminator\.shares"):
        JointDiscriminator([])


def test_frozen_first_takes_no_penalties() -> None:
    both = JointDiscriminator([projected([8, 16, 32], 16)])
    with pytest.raises(UserError, match=r"model\.penalties: JointDiscriminator .* set penalties to \[\]"):
        tiny_gan(discriminator=both, penalties=[R1(1.0)])


def full() -> dict:
    torch.manual_seed(2)
    multiscale = MultiscaleDiscriminator({8: 8, 16: 4, 32: 4}, text_dim=16, final_dim=8)
    return {
        "discriminator": JointDiscriminator([multiscale, projected([8, 16, 32], 16)], [2, 1]),
        "adversarial": Relativistic(),
        "penalties": [R1(0.1, every=2), R2(0.1, every=2)],
        "losses": [
            *(MismatchedCaptions(), FeatureMatching(), PerceptualMatching()),
            ImageTextContrastive(image_dim=8, text_dim=16, embed_dim=4),
        ],
        "accumulate": 2,
    }


def test_a_run_grows_with_both_and_resumes_to_the_bit(tmp_path: Path) -> None:
    whole, stopped, resumed = (tiny_gan(**full()) for _ in range(3))
    start = weights_of(whole)
    file = tmp_path / "stopped.ckpt"  # in the middle of a fade
    train(whole, 56, stages=SHORT)
    train(stopped, 24, [SaveAt({24: file})], stages=SHORT)
    train(resumed, 56, ckpt_path=file, stages=SHORT)

    assert_same(weights_of(whole), weights_of(resumed))
    learnt = {name for name, value in weights_of(whole).items() if not torch.equal(value, start[name])}
    assert {n.split(".")[2] for n in learnt if n.startswith("discriminator.parts")} == {"0", "1"}
    assert not any("mixing" in name for name in learnt)
