"""The discriminator's features are aligned with those of a frozen network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.losses.base import LossInputs
from imagen_pl.losses.feature_alignment import FeatureAlignment
from imagen_pl.models.discriminators.base import ImageFeatures
from imagen_pl.models.discriminators.joint import JointDiscriminator
from imagen_pl.models.discriminators.projected import ProjectedDiscriminator
from imagen_pl.models.pretrained.backbones import TimmBackbone
from imagen_pl.types import Growth
from tests.helpers.networks import small_discriminator, text_features

pytestmark = pytest.mark.usefixtures("one_thread")


def given(final: Tensor, maps: list[Tensor]) -> LossInputs:
    text = text_features(len(final))
    return LossInputs(
        torch.zeros(len(final), 3, 8, 8), ImageFeatures({}, final, frozen=maps), text, Growth(8)
    )


def loss_of(term: FeatureAlignment, inputs: LossInputs) -> Tensor:
    return term(small_discriminator(), NonSaturating(), inputs)


def test_loss_is_the_angle_to_what_tells_images_apart() -> None:
    """Two images, whose means less the common one are opposite."""
    term = FeatureAlignment(image_dim=2, channels=2)
    with torch.no_grad():
        term.predict.weight.copy_(torch.eye(2))
        term.predict.bias.zero_()
    map_ = torch.tensor([[3.0, 4.0], [4.0, 3.0]])[:, :, None, None].expand(2, 2, 4, 4)
    along = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])

    assert loss_of(term, given(along, [map_])).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert loss_of(term, given(-5 * along, [map_])).tolist() == pytest.approx([2.0, 2.0], abs=1e-6)


def test_features_that_predict_the_network_are_learnt() -> None:
    torch.manual_seed(0)
    maps = [torch.rand(16, 3, 4, 4), torch.rand(16, 5, 2, 2)]
    final = torch.randn(16, 12, requires_grad=True)
    term = FeatureAlignment(image_dim=12, channels=8)
    optimizer = torch.optim.Adam([final, *term.parameters()], lr=3e-2)
    before = loss_of(term, given(final, maps)).mean()
    for _ in range(100):
        optimizer.zero_grad()
        loss_of(term, given(final, maps)).mean().backward()
        optimizer.step()

    assert before > 0.7
    assert loss_of(term, given(final, maps)).mean() < 0.02
    shuffled = [each.roll(1, 0) for each in maps]
    assert loss_of(term, given(final, shuffled)).mean() > 0.7


def test_discriminator_s_backbone_gives_the_same_loss_as_one_of_its_own() -> None:
    backbone = TimmBackbone("efficientnet_lite0", size=16, maps=[1, 2])
    own = FeatureAlignment(backbone, image_dim=8)
    shared = FeatureAlignment(image_dim=8, channels=24 + 40)
    shared.load_state_dict(own.state_dict())
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    inputs = given(torch.randn(4, 8), backbone(images))
    inputs.images = images

    torch.testing.assert_close(loss_of(own, inputs), loss_of(shared, inputs))
    assert set(own.state_dict()) == {"predict.weight", "predict.bias"}, "the backbone is not saved"


def test_sizes_are_checked_before_the_run() -> None:
    backbone = TimmBackbone("efficientnet_lite0", size=16, maps=[1, 2])
    first = small_discriminator()
    projected = ProjectedDiscriminator(backbone, list(first.resolutions), text_dim=first.text_dim)
    joint = JointDiscriminator([first, projected])
    size = joint.final_dim

    with pytest.raises(ValueError, match=rf"image_dim is 5, but .* is {size}: set it to {size}"):
        FeatureAlignment(image_dim=5, channels=64).check(joint)
    with pytest.raises(ValueError, match=r"FeatureAlignment\.channels is 512, but .* is 64: set it to 64"):
        FeatureAlignment(image_dim=size).check(joint)
    FeatureAlignment(image_dim=size, channels=64).check(joint)
    with pytest.raises(ValueError, match=r"FeatureAlignment\.backbone is null"):
        FeatureAlignment(image_dim=size).check(small_discriminator())


def test_no_gradient_reaches_the_frozen_maps() -> None:
    maps = [F.relu(torch.randn(4, 8, 2, 2)).requires_grad_()]
    final = torch.randn(4, 6, requires_grad=True)
    loss_of(FeatureAlignment(image_dim=6, channels=8), given(final, maps)).sum().backward()
    assert maps[0].grad is None
    assert final.grad is not None
