"""The Translator: what it reads, what it changes, and its part in a training batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.models.generators.translator import AdaIN, Translator
from imagen_pl.models.layers.instance_norm import instance_norm
from imagen_pl.types import EncodedBatch, TextFeatures
from tests.helpers.networks import TEXT_DIM, awaken, text_features

pytestmark = pytest.mark.usefixtures("one_thread")


def small_translator(**settings: object) -> Translator:
    torch.manual_seed(0)
    chosen: dict = {"text_dim": TEXT_DIM, "latent_dim": 5, "style_dim": 8, "blocks": 1, **settings}
    translator = Translator({8: 8, 16: 4, 32: 4}, **chosen)
    awaken(translator)
    return translator


def batch_of(count: int = 4) -> EncodedBatch:
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)
    return EncodedBatch(images, text_features(count), [f"domain {i}" for i in range(count)])


def swapped(text: TextFeatures) -> TextFeatures:
    return text[torch.tensor([1, 0, 2, 3])]


@pytest.mark.parametrize("settings", [{}, {"skips": [16, 32]}, {"style_from": "domain"}])
def test_every_parameter_gets_a_gradient(settings: dict[str, object], latents: Tensor) -> None:
    translator, batch = small_translator(**settings), batch_of()
    images = translator.for_batch(latents, batch)
    styles = translator.style_of_image(images, batch.text)
    (images.square().sum() + (styles * torch.randn_like(styles)).sum()).backward()

    assert images.shape == (4, 3, 32, 32)
    for name, parameter in translator.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_swapped_domains_permute_the_translations(latents: Tensor) -> None:
    translator, batch = small_translator().eval(), batch_of()
    one = batch.images[:1].expand(4, -1, -1, -1)
    z = latents[:1].expand(4, -1)
    with torch.no_grad():
        drawn = translator.translate(one, translator.style_of_latent(z, batch.text))
        other = translator.translate(one, translator.style_of_latent(z, swapped(batch.text)))

    torch.testing.assert_close(other, drawn[[1, 0, 2, 3]])
    assert ((drawn[0] - drawn[1]).abs().max() > 1e-3).all()


def test_source_latent_and_reference_change_the_translation(latents: Tensor) -> None:
    translator, batch = small_translator().eval(), batch_of()
    with torch.no_grad():
        styles = translator.style_of_latent(latents, batch.text)
        likes = translator.style_of_image(batch.images, batch.text)
        drawn = translator.translate(batch.images, styles)
        others = [
            translator.translate(batch.images.flip(0), styles),
            translator.translate(batch.images, translator.style_of_latent(latents.flip(0), batch.text)),
            translator.translate(batch.images, likes),
        ]
        again = translator.style_of_image(batch.images.flip(0), batch.text)

    for other in others:
        assert ((drawn - other).abs().amax((1, 2, 3)) > 1e-4).all()
    assert (likes - again).abs().max() > 1e-4
    for each in (styles, likes):
        torch.testing.assert_close(each.var(1, correction=0), torch.ones(4), atol=1e-3, rtol=0)


def test_a_batch_translates_the_image_of_the_row_before(latents: Tensor) -> None:
    translator, batch = small_translator(reference_share=0.0), batch_of()
    sources, text = translator.sources(batch.images, batch.text)
    assert torch.equal(sources[1], batch.images[0])
    assert torch.equal(text.pooled[1], batch.text.pooled[0])
    with torch.no_grad():
        drawn = translator.for_batch(latents, batch)
        styles = translator.style_of_latent(latents, batch.text)
        expected = translator.translate(batch.images[[3, 0, 1, 2]], styles)
    torch.testing.assert_close(drawn, expected)


def test_reference_styles_are_used_in_training_alone_and_train_no_encoder(latents: Tensor) -> None:
    translator, batch = small_translator(reference_share=0.5), batch_of()
    by_latent = translator.style_of_latent(latents, batch.text)
    by_image = translator.style_of_image(batch.images, batch.text)

    assert translator.latent_rows(4) == 2
    styles = translator.batch_style(latents, batch.images, batch.text)
    torch.testing.assert_close(styles, torch.cat([by_latent[:2], by_image[2:]]))
    styles[2:].sum().backward()
    assert translator.style_encoder is not None
    assert all(p.grad is None or not p.grad.any() for p in translator.style_encoder.parameters())

    translator.eval()
    assert translator.latent_rows(4) == 4
    torch.testing.assert_close(translator.batch_style(latents, batch.images, batch.text), by_latent)


def test_one_style_a_domain_ignores_latent_and_reference(latents: Tensor) -> None:
    translator, batch = small_translator(style_from="domain"), batch_of()
    assert translator.style_encoder is None
    assert translator.latent_rows(4) == 4
    styles = translator.style_of_latent(latents, batch.text)
    assert torch.equal(styles, translator.style_of_latent(latents.flip(0), batch.text))
    assert torch.equal(styles, translator.style_of_image(batch.images, batch.text))
    assert (styles[0] - styles[1]).abs().max() > 1e-3
    assert list(translator.rows_to_show(latents, batch)) == ["source, to", "by latent"]


def test_rows_to_show(latents: Tensor) -> None:
    translator, batch = small_translator().eval(), batch_of()
    with torch.no_grad():
        rows = translator.rows_to_show(latents, batch)
    assert list(rows) == ["source, to", "by latent", "by reference", "reference"]
    assert torch.equal(rows["source, to"][1], batch.images[0])
    assert torch.equal(rows["reference"], batch.images)
    assert not torch.allclose(rows["by latent"], rows["by reference"], atol=1e-4)


def test_a_residual_translator_starts_from_the_source(latents: Tensor) -> None:
    batch = batch_of()
    for residual in (True, False):
        torch.manual_seed(0)
        translator = Translator({8: 8, 16: 4, 32: 4}, TEXT_DIM, latent_dim=5, residual=residual)
        with torch.no_grad():
            drawn = translator.for_batch(latents, batch)
        assert torch.equal(drawn, batch.images.roll(1, 0)) == residual


def test_it_needs_a_picture(latents: Tensor) -> None:
    translator = small_translator()
    assert translator.reads_images
    assert translator.blocks() == {}
    assert translator.resolutions == (32,)
    with pytest.raises(UserError, match="use imagen-pl translate"):
        translator(latents, text_features())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"channels": {16: 8}}, "must have two resolutions or more, from 8 px up"),
        ({"channels": {4: 8, 8: 8}}, "must have two resolutions or more, from 8 px up"),
        ({"channels": {8: 8, 16: 8}, "skips": [8]}, r"skips \[8\] must be among \[16\]"),
        ({"channels": {8: 8, 16: 8}, "reference_share": 2.0}, "reference_share 2.0 must be from 0 to 1"),
        ({"channels": {8: 8, 16: 8}, "blocks": 0}, "blocks 0 must be 1 or more"),
    ],
)
def test_bad_settings_raise(settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Translator(**settings)


def test_bfloat16_and_channels_last_give_about_the_same(latents: Tensor) -> None:
    translator, batch = small_translator().eval(), batch_of()
    with torch.no_grad():
        exact = translator.for_batch(latents, batch)
        translator.to(memory_format=torch.channels_last)
        last = EncodedBatch(
            batch.images.contiguous(memory_format=torch.channels_last), batch.text, batch.captions
        )
        torch.testing.assert_close(translator.for_batch(latents, last), exact, atol=1e-4, rtol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = translator.for_batch(latents, last)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.1 * exact.std()


# ------------------------------------------------------------------ layers


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_instance_norm_is_that_of_torch(layout: torch.memory_format) -> None:
    x = 3 + torch.randn(2, 5, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=layout).requires_grad_()
    torch.testing.assert_close(instance_norm(x), F.instance_norm(x))
    assert torch.autograd.gradcheck(instance_norm, (x,))


def test_instance_norm_of_flat_maps_is_zero() -> None:
    assert instance_norm(torch.full((1, 2, 8, 8), 7.0)).abs().max() < 1e-2


def test_adain_has_the_gain_and_bias_of_the_style() -> None:
    torch.manual_seed(0)
    layer, x, style = AdaIN(3, 8), 5 + 2 * torch.randn(4, 3, 6, 6), torch.randn(4, 8)
    gain, bias = layer.gain_and_bias(style).chunk(2, 1)
    drawn = layer(x, style)
    torch.testing.assert_close(drawn.mean((2, 3)), bias, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(drawn.std((2, 3), correction=0), (1 + gain).abs(), atol=1e-3, rtol=1e-3)
