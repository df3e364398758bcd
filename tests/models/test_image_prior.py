"""ImagePrior: its predictions against plain linear algebra, and its use in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.models.image_prior import ImagePrior
from imagen_pl.training import preparation
from tests.helpers.fakes import TinyBackbone, TinyText
from tests.helpers.networks import TEXT_DIM, awaken, pairs, small_generator, text_features
from tests.helpers.training import SaveAt, tiny_data, tiny_gan, train

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_prior(captions: int = 24, **settings: Any) -> ImagePrior:
    defaults: dict[str, Any] = {"text_dim": 16, "seen_dim": 4, "thumbnail_dim": 3}
    return ImagePrior(TinyBackbone(), captions, **{**defaults, **settings})


def by_numpy(prior: ImagePrior, pooled: Tensor, images: Tensor, asked: Tensor) -> list[np.ndarray[Any, Any]]:
    """Centred predictions of both parts, before components are selected."""
    known, t = (F.normalize(x, dim=1).double().numpy() for x in (pooled, asked))
    kernel = np.exp(prior.sharpness * (known @ known.T - 1))
    between = np.exp(prior.sharpness * (t @ known.T - 1))
    shown = images.float() / 127.5 - 1
    seen = torch.cat([each.mean((2, 3)) for each in prior.backbone(shown)], 1).double().numpy()
    thumbnails = shown.unflatten(2, (16, 2)).unflatten(4, (16, 2)).mean((3, 5)).flatten(1).double().numpy()
    inverse = np.linalg.inv(kernel + prior.ridge * np.eye(len(kernel)))
    return [between @ inverse @ (f - f.mean(0)) for f in (seen, thumbnails)]


def test_predictions_equal_kernel_ridge_regression() -> None:
    """With all components, predictions have the lengths and angles of the plain regression's."""
    pooled, images = pairs()
    asked = pairs(9, seed=1)[0]
    prior = tiny_prior(seen_dim=12, thumbnail_dim=3)  # the thumbnails of one colour have three
    prior.fit([(pooled, images)])
    found = prior(asked).double().numpy()
    for part, whole, own in zip(
        (found[:, :12], found[:, 12:]),
        by_numpy(prior, pooled, images, asked),
        by_numpy(prior, pooled, images, pooled),
        strict=True,
    ):
        size = part.shape[1]
        expected = whole @ whole.T / (np.square(own).sum() / (len(own) * size))
        np.testing.assert_allclose(part @ part.T, expected, rtol=2e-3, atol=2e-3)


def test_each_part_of_the_prediction_has_unit_mean_square() -> None:
    pooled, images = pairs()
    prior = tiny_prior()
    prior.fit([(pooled, images)])
    guesses = prior(pooled)
    for part in guesses.split(prior.parts, dim=1):
        assert float(part.square().mean()) == pytest.approx(1, abs=1e-3)


def test_components_with_most_variance_are_kept() -> None:
    pooled, images = pairs()
    prior = tiny_prior(seen_dim=2)
    prior.fit([(pooled, images)])
    shown = images.float() / 127.5 - 1
    seen = torch.cat([each.mean((2, 3)) for each in prior.backbone(shown)], 1)
    sizes = torch.linalg.svdvals(seen - seen.mean(0))
    guess = prior(pooled)[:, :2]
    assert float(guess[:, 0].std() / guess[:, 1].std()) == pytest.approx(float(sizes[0] / sizes[1]), rel=0.5)
    assert guess[:, 0].std() > guess[:, 1].std()


def test_unused_rows_change_nothing() -> None:
    pooled, images = pairs()
    exact, roomy = tiny_prior(24), tiny_prior(40)
    for prior in (exact, roomy):
        prior.fit([(pooled, images)])
    torch.testing.assert_close(roomy(pooled), exact(pooled))


def test_unseen_captions_are_predicted() -> None:
    pooled, images = pairs(200)
    held_out, truth = pairs(50, seed=1)
    colours = truth[:, :, 0, 0].double()

    def error(shuffled: bool) -> float:
        """Share of the colours' variance that predictions do not explain, by a linear fit on known rows."""
        prior = tiny_prior(200, sharpness=2.0, ridge=0.1)
        prior.fit([(pooled, images.roll(1, 0) if shuffled else images)])
        ones = [F.pad(prior(x)[:, 4:].double(), (0, 1), value=1.0) for x in (pooled, held_out)]
        fit = torch.linalg.lstsq(ones[0], images[:, :, 0, 0].double()).solution
        return float((ones[1] @ fit - colours).square().mean() / (colours - colours.mean(0)).square().mean())

    assert error(shuffled=False) < 0.3
    assert error(shuffled=True) > 0.9


@pytest.mark.parametrize("count", [0, 25])
def test_too_few_or_too_many_captions_raise(count: int) -> None:
    with pytest.raises(UserError, match=f"of 24 captions cannot be fitted to {count}"):
        tiny_prior().fit([pairs(count)])


@pytest.mark.parametrize("settings", [{"captions": 0}, {"seen_dim": 0}, {"ridge": 0.0}, {"sharpness": -1.0}])
def test_settings_out_of_range_raise(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"ImagePrior.{next(iter(settings))} "):
        tiny_prior(**settings)


# ---------------------------------------------------------------------- in a generator


def drawer(seed: int = 0) -> StyleGenerator:
    prior = ImagePrior(TinyBackbone(), 24, text_dim=TEXT_DIM, seen_dim=4, thumbnail_dim=3)
    generator = small_generator(prior=prior)
    awaken(generator)
    source = torch.Generator().manual_seed(seed)
    pooled = torch.randn(24, TEXT_DIM, generator=source)
    images = torch.randint(0, 256, (24, 3, 32, 32), generator=source, dtype=torch.uint8)
    prior.fit([(pooled, images)])
    return generator.eval()


def test_a_prior_for_other_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"text_dim is {TEXT_DIM}, but prior\.init_args\.text_dim is 16"):
        small_generator(prior=tiny_prior())


def test_images_depend_on_the_prediction() -> None:
    generator, z = drawer(), torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = generator(z, text_features())
        generator.get_submodule("prior").get_buffer("weights").mul_(-1)
        after = generator(z, text_features())
    assert (before - after).abs().mean() > 1e-3


def test_prior_has_no_trainable_parameters() -> None:
    generator = drawer()
    assert not list(generator.get_submodule("prior").parameters())


def test_guidance_includes_the_prior() -> None:
    generator, z = drawer(), torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    text = text_features()
    with torch.no_grad():
        plain = generator(z, text)
        same = generator(z, text, guidance=2.0, unconditional_text=text[:1])
    # Other pictures do not change.
    torch.testing.assert_close(same[:1], plain[:1], atol=1e-4, rtol=1e-3)
    assert (same[1:] - plain[1:]).abs().mean() > 1e-3


# ---------------------------------------------------------------------- in a training


def gan(**settings: Any) -> TextToImageGAN:
    return tiny_gan(generator={"prior": tiny_prior(settings.pop("captions", 24))}, **settings)


def prior_of(trained: TextToImageGAN) -> ImagePrior:
    prior = trained.generator.get_submodule("prior")
    assert isinstance(prior, ImagePrior)
    return prior


def test_prior_is_fitted_before_the_first_batch() -> None:
    trained = gan()
    data = tiny_data(24)
    train(trained, 8, data=data)

    expected = tiny_prior()
    shown = list(data.pairs.batches(24, largest=16))
    expected.fit((TinyText().encode(batch.captions).pooled, batch.images) for batch in shown)
    for name, value in expected.state_dict().items():
        assert value.any()
        torch.testing.assert_close(prior_of(trained).state_dict()[name], value)
        torch.testing.assert_close(trained.ema.state_dict()[f"generator.prior.{name}"], value)
    assert trained.teacher_networks() == ["tiny"]


def test_resume_loads_the_prior_from_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = gan()
    train(first, 16, [SaveAt({8: tmp_path / "middle.ckpt"})])
    monkeypatch.setattr(preparation, "KernelRidgeFit", lambda *_: pytest.fail("it was fitted again"))
    second = gan()
    train(second, 16, ckpt_path=tmp_path / "middle.ckpt")
    for name, value in prior_of(first).state_dict().items():
        assert torch.equal(prior_of(second).state_dict()[name], value)


def test_one_image_is_enough_to_train_with() -> None:
    """Its prediction is then constant."""
    trained = gan()
    train(trained, 8, data=tiny_data(1))
    assert not prior_of(trained).get_buffer("weights").any()


def test_prior_is_fitted_to_part_of_the_captions_if_there_are_too_many() -> None:
    trained = gan(captions=5)
    train(trained, 8, data=tiny_data(24))
    assert prior_of(trained).get_buffer("known").any(1).all()


def test_unavailable_backbone_raises_before_the_first_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: Any) -> None:
        raise UserError("backbone tiny is not available")

    monkeypatch.setattr(TinyBackbone, "load", missing)
    trained = gan()
    with pytest.raises(UserError, match="backbone tiny is not available"):
        train(trained, 8)
    assert trained.images_seen == 0


def test_init_from_loads_the_prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = gan()
    train(first, 8, [SaveAt({8: tmp_path / "first.ckpt"})])
    monkeypatch.setattr(preparation, "KernelRidgeFit", lambda *_: pytest.fail("it was fitted"))
    second = tiny_gan(generator={"prior": tiny_prior(), "init_from": str(tmp_path / "first.ckpt")})
    train(second, 8)
    for name, value in prior_of(first).state_dict().items():
        assert torch.equal(prior_of(second).state_dict()[name], value)


def test_changed_sharpness_does_not_affect_a_fitted_prior(tmp_path: Path) -> None:
    first = gan()
    train(first, 8, [SaveAt({8: tmp_path / "first.ckpt"})])
    second = tiny_gan(generator={"prior": tiny_prior(sharpness=9.0)})
    train(second, 16, ckpt_path=tmp_path / "first.ckpt")
    vectors = pairs()[0]
    assert torch.equal(prior_of(second)(vectors), prior_of(first)(vectors))
