"""InterpolatedCaptionLoss: against plain linear algebra, its effect, and its use in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.losses.base import LossInputs
from imagen_pl.losses.interpolated_captions import FeatureRegression, InterpolatedCaptionLoss, mixed
from imagen_pl.models.discriminators.base import ImageFeatures
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.schedules import Linear
from imagen_pl.training import preparation
from imagen_pl.types import Growth, TextFeatures
from tests.helpers.fakes import TinyBackbone, TinyText
from tests.helpers.networks import pairs, text_features
from tests.helpers.training import SaveAt, assert_same, tiny_data, tiny_gan, train, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_unseen(captions: int = 24, **settings: Any) -> InterpolatedCaptionLoss:
    defaults: dict[str, Any] = {"text_dim": 16, "seen_dim": 5, "from_resolution": 8}
    return InterpolatedCaptionLoss(TinyBackbone(), captions, **{**defaults, **settings})


def texts(pooled: Tensor) -> TextFeatures:
    tokens = pooled[:, None].repeat(1, 2, 1)
    return TextFeatures(tokens, torch.ones(len(pooled), 2, dtype=torch.bool), pooled)


class Painted(Generator):
    """Returns given images, and records the captions."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.resolutions, self.latent_dim, self.text_dim = (32,), 8, 16
        self.images = images
        self.asked: list[TextFeatures] = []

    def forward(self, z: Tensor, text: TextFeatures, *_: Any, **__: Any) -> Tensor:
        self.asked.append(text)
        return self.images[: len(text)].float() / 127.5 - 1

    def blocks(self) -> dict[int, torch.nn.Module]:
        return {}


def apply_loss(
    loss: InterpolatedCaptionLoss, generator: Any, latents: Tensor, text: TextFeatures, growth: Growth
) -> Tensor:
    """The loss in a generator step, with the inputs that it uses."""
    features = ImageFeatures({}, torch.zeros(len(text), 0))
    images = torch.zeros(len(text), 3, growth.resolution, growth.resolution)
    inputs = LossInputs(images, features, text, growth, generator=generator, latents=latents)
    discriminator = tiny_gan().discriminator
    return loss(discriminator, NonSaturating(), inputs)


def regression_of(gan: TextToImageGAN) -> FeatureRegression:
    (term,) = gan.losses
    assert isinstance(term, InterpolatedCaptionLoss)
    return term.regression


def drawn(unseen: InterpolatedCaptionLoss, images: Tensor, text: TextFeatures) -> tuple[Tensor, TextFeatures]:
    """Its losses for these images, and the captions interpolated from `text`."""
    painter = Painted(images)
    losses = apply_loss(unseen, painter, torch.zeros(len(text), 8), text, Growth(32))
    return losses, painter.asked[0]


def test_losses_are_cosine_distances_to_predicted_features() -> None:
    pooled, images = pairs()
    unseen = tiny_unseen(share=1.0)
    unseen.regression.fit([(pooled[:10], images[:10]), (pooled[10:], images[10:])])
    others, inputs = pairs(9, seed=1)
    losses, between = drawn(unseen, inputs, texts(others))

    def seen(x: Tensor) -> np.ndarray[Any, Any]:
        maps = unseen.regression.backbone(x.float() / 127.5 - 1)
        return torch.cat([each.mean((2, 3)) for each in maps], 1).double().numpy()

    train_seen = seen(images)
    centre = train_seen.mean(0)
    _, sizes, components = np.linalg.svd(train_seen - centre, full_matrices=False)
    scaled = components[:5] / np.sqrt(sizes[:5, None] / np.sqrt(len(pooled) - 1))
    known, t = (F.normalize(x, dim=1).double().numpy() for x in (pooled, between.pooled))
    kernel = np.exp(4 * (known @ known.T - 1)) + 2 * np.eye(len(known))
    guess = np.exp(4 * (t @ known.T - 1)) @ np.linalg.solve(kernel, (train_seen - centre) @ scaled.T)
    is_seen = (seen(inputs) - centre) @ scaled.T
    cosine = (is_seen * guess).sum(1) / np.linalg.norm(is_seen, axis=1) / np.linalg.norm(guess, axis=1)
    np.testing.assert_allclose(losses.numpy(), 1 - cosine, atol=2e-3)


def test_images_of_the_own_caption_have_less_loss() -> None:
    pooled, images = pairs(200)
    unseen = tiny_unseen(200, share=1.0, ridge=0.1)
    unseen.regression.fit([(pooled, images)])
    held_out, inputs = pairs(40, seed=1)
    same = texts(held_out)
    own = torch.stack([drawn(unseen, inputs[k : k + 1], same[k : k + 1])[0][0] for k in range(40)])
    other = torch.stack([drawn(unseen, inputs[k - 1 : k], same[k : k + 1])[0][0] for k in range(1, 40)])
    assert own.mean() < 0.7 * other.mean()


def test_interpolated_captions_have_the_tokens_of_both() -> None:
    torch.manual_seed(0)
    one, other = text_features(3, dim=16, seed=1), text_features(3, tokens=4, dim=16, seed=2)
    between = mixed(one, other)
    assert torch.equal(between.tokens, torch.cat([one.tokens, other.tokens], 1))
    assert torch.equal(between.mask, torch.cat([one.mask, other.mask], 1))
    torch.testing.assert_close(between.pooled.square().mean(1), torch.ones(3))
    for row in range(3):
        ends = torch.stack([one.pooled[row], other.pooled[row]])
        weights = torch.linalg.lstsq(ends.T, between.pooled[row][:, None]).solution[:, 0]
        assert (weights > 0).all()
        torch.testing.assert_close(weights @ ends, between.pooled[row])


@pytest.mark.parametrize(("share", "asked"), [(0.25, 2), (0.5, 4), (1.0, 8), (0.01, 1)])
def test_share_selects_part_of_the_batch(share: float, asked: int) -> None:
    pooled, images = pairs()
    unseen = tiny_unseen(share=share)
    unseen.regression.fit([(pooled, images)])
    assert len(drawn(unseen, images, texts(pooled[:8]))[0]) == asked


def test_generator_learns_images_of_unseen_captions() -> None:
    """Trained with this loss only, images of held-out captions are nearest to their own prediction."""
    pooled, images = pairs(64)
    unseen = tiny_unseen(64, share=1.0, ridge=0.1)
    unseen.regression.fit([(pooled, images)])
    torch.manual_seed(0)
    generator = StyleGenerator({8: 8, 16: 8}, text_dim=16, latent_dim=8, style_dim=16)
    optimizer = torch.optim.Adam(generator.parameters(), 3e-3)
    held_out = texts(pairs(32, seed=1)[0])

    def cost(shift: int) -> float:
        with torch.no_grad():
            painted = generator(torch.zeros(32, 8), held_out)
            seen = (
                unseen.regression.means(painted) - unseen.regression.centre
            ) @ unseen.regression.directions
            return float(
                1
                - F.cosine_similarity(seen, unseen.regression.predict(held_out.pooled.roll(shift, 0))).mean()
            )

    before = cost(0)
    for _ in range(60):
        optimizer.zero_grad()
        apply_loss(unseen, generator, torch.randn(64, 8), texts(pooled), Growth(16)).mean().backward()
        optimizer.step()
    assert cost(0) < 0.6 * before
    assert cost(0) < 0.6 * cost(1)


@pytest.mark.parametrize("count", [1, 3])
def test_few_images_limit_the_components(count: int) -> None:
    """Otherwise rounding errors would be scaled up to the size of the signal."""
    pooled, images = pairs(count)
    unseen = tiny_unseen(share=1.0, seen_dim=8)
    unseen.regression.fit([(pooled, images)])
    ranks = int(torch.linalg.matrix_rank(unseen.regression.directions))
    assert ranks == int((unseen.regression.directions != 0).any(0).sum()) < max(2, count)
    others, inputs = pairs(6, seed=1)
    losses = drawn(unseen, inputs, texts(others))[0]
    assert losses.isfinite().all()
    assert count > 1 or torch.equal(losses, torch.ones(6))


def test_autocast_leaves_the_projection_in_float32() -> None:
    pooled, images = pairs()
    unseen = tiny_unseen(share=1.0)
    unseen.regression.fit([(pooled, images)])
    seen: list[Tensor] = []

    def means(images: Tensor) -> Tensor:
        seen.append(images.mean((2, 3)).repeat(1, 4))
        return seen[-1]

    unseen.regression.means = means  # type: ignore[method-assign]
    torch.manual_seed(0)
    plain = drawn(unseen, images, texts(pooled[:8]))[0]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = drawn(unseen, images, texts(pooled[:8]))[0]
    assert torch.equal(cast, plain)


def test_wrong_text_dim_raises() -> None:
    with pytest.raises(
        ValueError, match=r"InterpolatedCaptionLoss.text_dim is 24, but the discriminator's text_dim is 16"
    ):
        tiny_gan(losses=[tiny_unseen(text_dim=24)])


@pytest.mark.parametrize(
    "settings",
    [{"captions": 0}, {"seen_dim": 0}, {"ridge": 0.0}, {"sharpness": -1.0}, {"share": 0.0}, {"share": 1.5}],
)
def test_settings_out_of_range_raise(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"InterpolatedCaptionLoss.{next(iter(settings))} "):
        tiny_unseen(**settings)


# ---------------------------------------------------------------------- in a training


def trained(
    images: int = 16, unseen: InterpolatedCaptionLoss | None = None, accumulate: int = 1, **settings: Any
) -> TextToImageGAN:
    gan = tiny_gan(losses=[] if unseen is None else [unseen], accumulate=accumulate)
    train(gan, images, **settings)
    return gan


def test_regression_is_fitted_before_the_first_batch() -> None:
    data = tiny_data(24)
    gan = trained(8, tiny_unseen(), data=data)
    expected = tiny_unseen().regression
    expected.fit((TinyText().encode(b.captions).pooled, b.images) for b in data.pairs.batches(24, largest=16))
    for name, value in expected.state_dict().items():
        assert value.any()
        torch.testing.assert_close(regression_of(gan).state_dict()[name], value)
    assert gan.teacher_networks() == ["tiny"]


def test_every_accumulated_part_has_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = InterpolatedCaptionLoss.forward

    def count_rows(self: InterpolatedCaptionLoss, *inputs: Any) -> Tensor:
        losses = forward(self, *inputs)
        rows.append(len(losses))
        return losses

    monkeypatch.setattr(InterpolatedCaptionLoss, "forward", count_rows)
    gan = trained(8, tiny_unseen(share=0.5), accumulate=4)
    assert rows == [1] * 4
    assert all(value.isfinite().all() for value in weights_of(gan.generator).values())


def test_loss_applies_in_the_generator_step_only() -> None:
    without, taught = trained(8), trained(8, tiny_unseen())
    assert_same(weights_of(taught.discriminator), weights_of(without.discriminator))
    moved = weights_of(taught.generator)
    assert any(not torch.equal(moved[name], value) for name, value in weights_of(without.generator).items())


@pytest.mark.parametrize("settings", [{"generator_weight": 0.0}, {"from_resolution": 64}])
def test_zero_weight_changes_nothing(settings: dict[str, Any]) -> None:
    assert_same(weights_of(trained(16, tiny_unseen(**settings)).generator), weights_of(trained(16).generator))


def test_the_weight_may_follow_a_schedule() -> None:
    unseen = tiny_unseen(generator_weight=Linear(start=2.0, end=0.0, kimg=1), from_resolution=16)
    assert [unseen.weight("generator", *at) for at in ((500, 16), (500, 8), (1000, 32))] == [1.0, 0.0, 0.0]


def test_resume_loads_the_regression_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_gan(losses=[tiny_unseen()])
    train(whole, 16, [SaveAt({8: tmp_path / "middle.ckpt"})])
    monkeypatch.setattr(preparation, "KernelRidgeFit", lambda *_: pytest.fail("it was fitted again"))
    resumed = tiny_gan(losses=[tiny_unseen()])
    train(resumed, 16, ckpt_path=tmp_path / "middle.ckpt")
    assert_same(weights_of(resumed), weights_of(whole))


def test_regression_is_fitted_again_with_init_from(tmp_path: Path) -> None:
    train(tiny_gan(), 8, [SaveAt({8: tmp_path / "first.ckpt"})])
    gan = tiny_gan(generator={"init_from": str(tmp_path / "first.ckpt")}, losses=[tiny_unseen()])
    train(gan, 8)
    assert regression_of(gan).weights.any()
