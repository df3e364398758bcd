"""Refinement: pictures come nearer to the prior's prediction, by a valid style."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.inference.pipeline import TextToImage, load
from imagen_pl.inference.refinement import can_refine, refinable, refined
from imagen_pl.inference.sampling_options import MAX_STEPS, check_refine
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.models.image_prior import ImagePrior
from imagen_pl.models.pretrained.backbones import TimmBackbone
from imagen_pl.storage.checkpoint_io import check_same_tensors
from imagen_pl.storage.model_files import read_release
from imagen_pl.types import Growth, TextFeatures
from tests.helpers.fakes import TinyText
from tests.helpers.networks import awaken, pairs, small_generator, text_features
from tests.helpers.training import SaveAt, tiny_gan, train
from tests.models.test_image_prior import tiny_prior

pytestmark = pytest.mark.usefixtures("one_thread")
GROWN = Growth(16)


def with_prior(prior: ImagePrior | None = None) -> StyleGenerator:
    if prior is None:
        prior = tiny_prior()
        prior.fit([pairs()])
    generator = small_generator(text_dim=16, style_dim=16, prior=prior)
    awaken(generator)
    return generator.eval().requires_grad_(False)


def refine(generator: StyleGenerator, text: TextFeatures, z: Tensor, steps: int) -> Tensor:
    assert generator.prior is not None
    return refined(generator, generator.prior, generator.style(z, text), text, GROWN, steps)


@pytest.fixture
def asked() -> tuple[TextFeatures, Tensor]:
    torch.manual_seed(0)
    return text_features(6, dim=16), torch.randn(6, 5)


def test_style_and_draw_together_equal_forward(asked: tuple[TextFeatures, Tensor]) -> None:
    text, z = asked
    generator = with_prior()
    how = (0.5, 1.5, text_features(3, dim=16, seed=7))
    style = generator.style(z, text, *how)
    torch.testing.assert_close(style.mean(1), torch.zeros(6), atol=1e-4, rtol=0)
    for growth in (Growth(16), Growth(8, 0.5)):
        assert torch.equal(generator.draw(style, text, growth), generator(z, text, growth, *how))


def test_prior_distance_is_that_between_image_and_predicted_features(
    asked: tuple[TextFeatures, Tensor],
) -> None:
    """Against plain linear algebra."""
    pooled, images = pairs()
    prior = tiny_prior(seen_dim=4)
    prior.fit([(pooled, images)])
    others, shown = pairs(9, seed=1)

    def seen(x: Tensor) -> Tensor:
        maps = prior.backbone(x.float() / 127.5 - 1)
        return torch.cat([each.mean((2, 3)) for each in maps], 1).double()

    known = seen(images)
    components = torch.linalg.svd(known - known.mean(0), full_matrices=False)[2][:4]
    found = (seen(shown) - known.mean(0)) @ components.T
    # Signs of components are arbitrary, so both go by way of the whole space.
    guess = prior(others)[:, :4].double() @ prior.directions.double().T
    expected = 1 - torch.cosine_similarity(found @ components, guess)
    off = prior.cosine_distance(shown.float() / 127.5 - 1, others)
    torch.testing.assert_close(off.double(), expected, atol=2e-3, rtol=0)


def test_refined_images_are_nearer_to_their_own_prediction_only(
    asked: tuple[TextFeatures, Tensor],
) -> None:
    text, z = asked
    generator = with_prior()
    prior = generator.prior
    assert prior is not None
    with torch.no_grad():
        plain = generator(z, text)
        moved = {steps: refine(generator, text, z, steps) for steps in (0, 10, 40)}
        off = {
            steps: float(prior.cosine_distance(images, text.pooled).mean()) for steps, images in moved.items()
        }
        others = [
            float(prior.cosine_distance(images, text.pooled.roll(1, 0)).mean())
            for images in (plain, moved[40])
        ]
    torch.testing.assert_close(moved[0], plain, atol=1e-3, rtol=0)
    assert off[40] < off[10] < off[0]
    assert off[0] - off[40] > 0.1 > others[0] - others[1]


def test_each_image_is_refined_independently(asked: tuple[TextFeatures, Tensor]) -> None:
    text, z = asked
    generator = with_prior()
    together = refine(generator, text, z, 5)
    alone = torch.cat([refine(generator, text[k : k + 1], z[k : k + 1], 5) for k in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)


def test_style_updates_equal_those_of_torch_s_adam(asked: tuple[TextFeatures, Tensor]) -> None:
    text, z = asked
    generator = with_prior()
    prior = generator.prior
    assert prior is not None
    start = generator.style(z, text).detach()
    move = torch.zeros_like(start, requires_grad=True)
    adam = torch.optim.Adam([move], lr=0.05)

    def draw() -> Tensor:
        length = start.std(1, correction=0, keepdim=True)
        style = length * torch.nn.functional.layer_norm(start + move, (start.shape[1],))
        return generator.draw(style, text, GROWN)

    for _ in range(8):
        adam.zero_grad()
        prior.cosine_distance(draw(), text.pooled).sum().backward()
        adam.step()

    assert torch.equal(refine(generator, text, z, 8), draw())


def test_each_step_is_reported_with_the_batch_size(asked: tuple[TextFeatures, Tensor]) -> None:
    text, z = asked
    model = TextToImage(with_prior(), TinyText(), GROWN, {})
    reported: list[int] = []

    model.pictures(z, text, refine=3, on_step=reported.append)
    assert reported == [6, 6, 6]

    pictures = list(model.draw([("a", 0), ("b", 1)], refine=2, on_step=reported.append))
    assert len(pictures) == 2
    assert reported[3:] == [2, 2]


def test_inference_mode_tensors_can_be_refined(asked: tuple[TextFeatures, Tensor]) -> None:
    text, z = asked
    generator = with_prior()
    expected = refine(generator, text, z, 5)
    with torch.inference_mode():
        made = TextFeatures(text.tokens.clone(), text.mask.clone(), text.pooled.clone())
        assert torch.equal(refine(generator, made, z.clone(), 5), expected)


@pytest.mark.parametrize("steps", [-1, 1.5, MAX_STEPS + 1, None, float("nan")])
def test_steps_out_of_range_raise(steps: float | None) -> None:
    with pytest.raises(UserError, match=f"refine {steps} is not a whole number from 0 to {MAX_STEPS}"):
        check_refine(steps)


def test_missing_prior_gives_one_line_error() -> None:
    generator = small_generator()
    assert not can_refine(generator)
    with pytest.raises(UserError, match="has no prior"):
        refinable(generator)


# ---------------------------------------------------------------------- in a training


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    train(tiny_gan(generator={"prior": tiny_prior()}), 8, [SaveAt({8: path})])
    return path


def test_a_trained_prior_has_components_and_so_has_one_initialised_from_it(checkpoint: Path) -> None:
    kept = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert kept["ema.generator.prior.directions"].any()
    gan = tiny_gan(generator={"prior": tiny_prior(), "init_from": str(checkpoint)})
    train(gan, 8)
    prior = gan.ema.generator.prior
    assert isinstance(prior, ImagePrior)
    assert torch.equal(prior.directions, kept["ema.generator.prior.directions"])
    assert can_refine(gan.ema.generator)


def test_a_prior_saved_without_components_is_loaded_but_cannot_refine(
    checkpoint: Path, tmp_path: Path
) -> None:
    held = torch.load(checkpoint, weights_only=True)
    for name in [n for n in held["state_dict"] if n.endswith(("prior.centre", "prior.directions"))]:
        del held["state_dict"][name]
    old = tmp_path / "old.ckpt"
    torch.save(held, old)
    gan = tiny_gan(generator={"prior": tiny_prior()})
    train(gan, 16, ckpt_path=old)
    assert gan.images_seen == 16
    assert not can_refine(gan.ema.generator)
    with pytest.raises(UserError, match="which did not save the principal components"):
        refinable(gan.ema.generator)


def test_release_contains_the_prior_s_components(tmp_path: Path) -> None:
    generator = with_prior()
    model = TextToImage(generator, TinyText(), GROWN, {"format": 1, "generator": {}, "text_encoder": {}})
    model.save(tmp_path, torch.float16)
    weights = read_release(tmp_path)[1]
    again = with_prior()
    again.prior = tiny_prior()  # a new prior, without components
    check_same_tensors(again.state_dict(), weights, tmp_path, "")
    again.load_state_dict(weights)
    assert again.prior.directions.dtype == torch.float32
    found = TextToImage(again, TinyText(), GROWN, {}).sample("a heart", refine=5)[0]
    expected, plain = (model.sample("a heart", refine=steps)[0] for steps in (5, 0))
    apart = [
        np.abs(np.asarray(found, float) - np.asarray(other, float)).mean() for other in (expected, plain)
    ]
    assert apart[0] < 1 < apart[1]


def test_other_components_or_backbone_give_one_line_error(tmp_path: Path) -> None:
    generator = with_prior()
    held = generator.state_dict()
    other = with_prior(prior=tiny_prior(seen_dim=3, thumbnail_dim=4)).state_dict()
    with pytest.raises(UserError, match=r"prior.directions is \(12, 4\) in the file and \(0, 3\) here"):
        check_same_tensors(other, held, tmp_path, "")
    prior = generator.prior
    assert prior is not None
    prior.centre, prior.directions = prior.centre[:-1], prior.directions[:-1]
    with pytest.raises(UserError, match="was fitted with another backbone"):
        refinable(generator)


def test_refinement_keeps_guidance(asked: tuple[TextFeatures, Tensor]) -> None:
    text, z = asked
    generator = with_prior()
    assert generator.prior is not None
    how = (1.0, 3.0, text_features(3, dim=16, seed=7))
    style = generator.style(z, text, *how)
    unmoved = refined(generator, generator.prior, style, text, GROWN, 0)
    torch.testing.assert_close(unmoved, generator(z, text, GROWN, *how), atol=1e-3, rtol=1e-3)


def test_backbone_loaded_in_inference_mode_still_gives_gradients() -> None:
    backbone = TimmBackbone("efficientnet_lite0", 32, [3])
    with torch.inference_mode():
        backbone.load()
    images = torch.zeros(1, 3, 32, 32, requires_grad=True)
    backbone(images)[0].sum().backward()
    assert images.grad is not None
    assert images.grad.any()


def test_the_released_model_refines() -> None:
    """For captions of the test split, pictures come nearer to the prior's prediction."""
    model = load("emoji", device="cpu")
    generator, prior = refinable(model.generator)
    text = model.text_encoder.encode(
        ["accordion, noto style", "cupcake, fluent style", "koala, twemoji style"]
    )
    z = torch.randn(3, generator.latent_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        style = generator.style(z, text)
        off = [
            float(
                prior.cosine_distance(
                    refined(generator, prior, style, text, model.growth, n), text.pooled
                ).mean()
            )
            for n in (0, 20)
        ]
    assert off[1] < 0.7 * off[0]
