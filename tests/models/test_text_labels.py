"""Class labels and no captions, in place of a text encoder."""

from __future__ import annotations

import pytest
import torch

from imagen_pl.errors import UserError
from imagen_pl.models.text.labels import ClassLabels, NoText
from imagen_pl.types import Growth
from tests.helpers.networks import small_generator
from tests.helpers.training import tiny_gan, train


def test_each_class_is_a_vector_of_its_own() -> None:
    text = ClassLabels(["cat", "dog", "owl", "emu"]).encode(["owl", "cat", "", "owl"])

    assert text.pooled.tolist() == [[0, 0, 2, 0], [2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0]]
    assert torch.equal(text.tokens[:, 0], text.pooled)
    assert text.mask.tolist() == [[True], [True], [False], [True]]
    assert text.pooled[0].square().mean() == 1


def test_other_captions_are_refused_with_the_nearest_classes() -> None:
    with pytest.raises(UserError, match=r"'cats' is none of the 2 classes of this model: try 'cat'$"):
        ClassLabels(["cat", "dog"]).encode(["cats"])
    with pytest.raises(UserError, match=r"'x' is none of the 2 classes of this model: try 'cat', 'dog'$"):
        ClassLabels(["cat", "dog"]).encode(["x"])


@pytest.mark.parametrize("classes", [[], ["cat", "cat"], ["cat", ""]])
def test_classes_are_checked(classes: list[str]) -> None:
    with pytest.raises(UserError, match=r"text_encoder\.classes .* must be different names"):
        ClassLabels(classes)


def test_other_classes_have_another_fingerprint() -> None:
    prints = {ClassLabels(classes).fingerprint for classes in (["a", "b"], ["b", "a"], ["a", "b", "c"])}
    assert len(prints) == 3
    assert NoText(4).fingerprint != NoText(5).fingerprint


def test_without_text_all_captions_draw_the_same() -> None:
    generator = small_generator(text_dim=4)
    text = NoText().encode(["a cat", "a red heart", ""])
    z = torch.randn(1, 5).expand(3, 5)
    images = generator(z, text, Growth(16))
    torch.testing.assert_close(images, images[:1].expand_as(images))
    with pytest.raises(UserError, match=r"text_encoder\.dim 0 must be 1 or more"):
        NoText(0)


def test_training_without_text() -> None:
    gan = tiny_gan(text_encoder=NoText(16))
    before = [p.clone() for p in gan.generator.parameters()]
    train(gan, 32)
    assert any(not torch.equal(a, b) for a, b in zip(before, gan.generator.parameters(), strict=True))
