"""Attributes that captions name are classified from the discriminator's features."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.losses.attribute_classifier import AttributeClassifier, attribute_classes
from imagen_pl.losses.base import LossInputs
from imagen_pl.models.discriminators.base import ImageFeatures
from imagen_pl.types import Growth
from tests.helpers.networks import small_discriminator, text_features

CAPTIONS = [
    "bell",
    "bell, outline",
    "bell, Tabler Icons, outline",
    "home, Phosphor, Outline",
    "home, emoji, a, b",
]


def given(captions: list[str], final: torch.Tensor) -> LossInputs:
    return LossInputs(
        torch.zeros(len(final), 3, 8, 8), ImageFeatures({}, final), text_features(len(final)), Growth(8),
        captions=captions,
    )  # fmt: skip


def test_attributes_are_counted_from_the_end_of_a_caption() -> None:
    found = attribute_classes(CAPTIONS, attributes=2, classes=10_000)

    outline = found[1, 0]
    assert found[0].tolist() == [-1, -1]
    assert found[1].tolist() == [outline, -1]
    assert found[2, 0] == found[3, 0] == outline >= 0
    assert len({*found[2:, 1].tolist()}) == 3
    assert torch.equal(found, attribute_classes(CAPTIONS, attributes=2, classes=10_000))
    assert attribute_classes(CAPTIONS, attributes=1, classes=7).shape == (5, 1)
    assert int(attribute_classes(CAPTIONS, attributes=2, classes=7).max()) < 7
    assert attribute_classes(["bell, ", "bell,, outline"], 2, 10_000).tolist() == [[-1, -1], [outline, -1]]


def test_loss_is_the_mean_cross_entropy_of_the_named_attributes() -> None:
    torch.manual_seed(0)
    term, final = AttributeClassifier(image_dim=6, classes=50), torch.randn(5, 6)

    loss = term(small_discriminator(), NonSaturating(), given(CAPTIONS, final)).detach()

    classes = attribute_classes(CAPTIONS, 2, 50)
    kind, icon_set = (
        F.cross_entropy(head(final), classes[:, place].clamp(min=0), reduction="none")
        for place, head in enumerate(term.heads)
    )
    assert loss[0] == 0
    assert loss[1] == pytest.approx(kind[1].item())
    assert loss[2:].tolist() == pytest.approx(((kind + icon_set) / 2)[2:].tolist())


def test_attributes_are_learnt_from_the_features() -> None:
    torch.manual_seed(0)
    captions = [f"bell, set {i // 2}, kind {i % 2}" for i in range(8)]
    final, term = torch.randn(8, 16), AttributeClassifier(image_dim=16, classes=100)
    optimizer = torch.optim.Adam(term.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        term(small_discriminator(), NonSaturating(), given(captions, final)).mean().backward()
        optimizer.step()

    loss = term(small_discriminator(), NonSaturating(), given(captions, final))
    assert loss.max() < 0.1
    assert {name: float(value) for name, value in term.take_notes().items()} == {
        "accuracy_1": 1.0,
        "accuracy_2": 1.0,
    }


def test_subjects_alone_have_no_loss_and_no_accuracy() -> None:
    term = AttributeClassifier(image_dim=6)
    loss = term(small_discriminator(), NonSaturating(), given(["bell", ""], torch.randn(2, 6)))

    assert loss.tolist() == [0.0, 0.0]
    assert term.take_notes() == {}


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"AttributeClassifier.image_dim is 7, but the discriminator's"):
        AttributeClassifier(image_dim=7).check(small_discriminator())
    with pytest.raises(UserError, match=r"AttributeClassifier.classes 0 must be 1 or more"):
        AttributeClassifier(classes=0)
