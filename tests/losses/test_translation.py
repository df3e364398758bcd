"""The losses of image-to-image translation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.losses.base import LossInputs, LossTerm
from imagen_pl.losses.interpolated_captions import InterpolatedCaptionLoss
from imagen_pl.losses.latent_diversity import ModeSeeking
from imagen_pl.losses.translation import (
    CycleConsistency,
    IdentityTranslation,
    StyleDiversity,
    StyleReconstruction,
    TranslationLoss,
)
from imagen_pl.models.discriminators.base import ImageFeatures
from imagen_pl.models.generators.translator import Translator
from imagen_pl.schedules import Linear
from imagen_pl.types import Growth, TextFeatures
from tests.helpers.fakes import TinyBackbone
from tests.helpers.networks import TEXT_DIM, awaken, small_discriminator, text_features
from tests.helpers.training import tiny_gan

pytestmark = pytest.mark.usefixtures("one_thread")
DISCRIMINATOR = small_discriminator()  # no term looks at it


class Unchanged(Translator):
    """Translates nothing."""

    def translate(self, images: Tensor, style: Tensor) -> Tensor:
        return images


class StyleAsColour(Translator):
    """Adds the first three entries of the style to the colours, and reads them from the mean colour."""

    def translate(self, images: Tensor, style: Tensor) -> Tensor:
        return images + style[:, :3, None, None]

    def style_of_latent(self, z: Tensor, text: TextFeatures) -> Tensor:
        return torch.cat([z[:, :3], z.new_zeros(len(z), self.style_dim - 3)], 1)


def made(kind: type[Translator], **settings: object) -> Translator:
    torch.manual_seed(0)
    chosen: dict = {"text_dim": TEXT_DIM, "latent_dim": 5, "style_dim": 8, "blocks": 1, **settings}
    return kind({8: 8, 16: 4}, **chosen)


def inputs_of(translator: Translator, images: Tensor | None = None) -> LossInputs:
    draw = torch.Generator().manual_seed(0)
    real = torch.rand(4, 3, 16, 16, generator=draw) * 2 - 1
    z, text = torch.randn(4, 5, generator=draw), text_features()
    if images is None:
        sources, _ = translator.sources(real, text)
        images = translator.translate(sources, translator.batch_style(z, real, text))
    features = ImageFeatures({}, torch.zeros(4, 8))
    return LossInputs(images, features, text, Growth(16), real_images=real, generator=translator, latents=z)


def value(term: LossTerm, inputs: LossInputs) -> Tensor:
    loss: Tensor = term(DISCRIMINATOR, NonSaturating(), inputs)
    return loss


def test_cycle_and_identity_losses_of_an_identity_translator_are_zero() -> None:
    inputs = inputs_of(made(Unchanged))
    assert torch.equal(value(CycleConsistency(), inputs), torch.zeros(4))
    assert torch.equal(value(IdentityTranslation(share=1.0), inputs), torch.zeros(4))


def test_cycle_loss_is_the_distance_to_the_source() -> None:
    translator = made(Unchanged)
    inputs = inputs_of(translator)
    off = replace(inputs, images=inputs.images + torch.tensor([0.0, 0.1, 0.2, 0.3])[:, None, None, None])
    torch.testing.assert_close(value(CycleConsistency(), off), torch.tensor([0.0, 0.1, 0.2, 0.3]))


def test_cycle_goes_back_to_the_domain_of_the_source() -> None:
    asked: list[Tensor] = []

    class Recording(Unchanged):
        def style_of_image(self, images: Tensor, text: TextFeatures) -> Tensor:
            asked.append(text.pooled)
            return super().style_of_image(images, text)

    translator = made(Recording, reference_share=0.0)
    inputs = inputs_of(translator)
    value(CycleConsistency(), inputs)
    assert torch.equal(asked[-1], inputs.text.roll(1).pooled)


def test_style_reconstruction_is_zero_where_the_encoder_inverts_the_mapping() -> None:
    class Inverted(StyleAsColour):
        def style_of_image(self, images: Tensor, text: TextFeatures) -> Tensor:
            return wanted

    translator = made(Inverted, reference_share=0.0)
    inputs = inputs_of(made(Unchanged))
    inputs = replace(inputs, generator=translator)
    assert inputs.latents is not None
    wanted = translator.style_of_latent(inputs.latents, inputs.text)
    assert torch.equal(value(StyleReconstruction(), inputs), torch.zeros(4))
    wanted = wanted + 0.5
    torch.testing.assert_close(value(StyleReconstruction(), inputs), torch.full((4,), 0.5))


def test_diversity_is_minus_the_distance_of_two_translations_of_one_source() -> None:
    translator = made(StyleAsColour, reference_share=0.5)
    inputs = inputs_of(translator)
    assert inputs.latents is not None
    torch.manual_seed(7)
    loss = value(StyleDiversity(), inputs)
    torch.manual_seed(7)
    other = torch.randn_like(inputs.latents[:2])
    expected = -(inputs.latents[:2, :3] - other[:, :3]).abs().mean(1)
    torch.testing.assert_close(loss, expected)  # of the rows with a style from their latent alone
    assert len(value(StyleDiversity(share=0.5), inputs)) == 1


def test_diversity_of_a_translator_that_ignores_its_style_is_zero() -> None:
    assert not value(StyleDiversity(), inputs_of(made(Unchanged))).any()


def test_weight_of_diversity_is_zero_at_the_end() -> None:
    term = StyleDiversity(Linear(1.0, 0.0, kimg=2))
    assert [term.weight("generator", images, 16) for images in (0, 1000, 2000, 3000)] == [1.0, 0.5, 0.0, 0.0]


def test_losses_of_a_real_translator_train_mapping_and_encoder() -> None:
    translator = made(Translator, reference_share=0.5)
    awaken(translator)
    assert translator.style_encoder is not None
    for term in (CycleConsistency(), StyleReconstruction()):
        translator.zero_grad()
        value(term, inputs_of(translator)).sum().backward()
        for network in (translator.style_encoder, translator.mapping, translator.down, translator.up):
            assert all(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("term", [CycleConsistency, StyleReconstruction, StyleDiversity, IdentityTranslation])
def test_terms_need_a_translator(term: type[TranslationLoss]) -> None:
    with pytest.raises(UserError, match=rf"{term.__name__} needs a Translator, not StyleGenerator: leave it"):
        tiny_gan(losses=[term()])


@pytest.mark.parametrize("term", [StyleReconstruction, StyleDiversity])
def test_terms_of_styles_need_styles(term: type[TranslationLoss]) -> None:
    translator = made(Translator, text_dim=16, style_from="domain")
    with pytest.raises(UserError, match=r"with style_from: domain a domain has one: leave it out"):
        tiny_gan(generator=translator, losses=[term()])


def test_terms_that_draw_captions_refuse_a_translator() -> None:
    translator = made(Translator, text_dim=16)
    regression = InterpolatedCaptionLoss(TinyBackbone(), 32, text_dim=16, seen_dim=4)
    for term in (ModeSeeking(), regression):
        said = f"{type(term).__name__} draws images from captions alone, which a Translator cannot do"
        with pytest.raises(UserError, match=said):
            tiny_gan(generator=translator, losses=[term])


def test_bad_shares_raise() -> None:
    for term in (StyleDiversity, IdentityTranslation):
        with pytest.raises(ValueError, match="share 0 must be above 0 and at most 1"):
            term(share=0)
    translator = made(Translator, reference_share=1.0)
    with pytest.raises(UserError, match=r"needs styles from latents: lower Translator.reference_share"):
        value(StyleDiversity(), inputs_of(translator))
