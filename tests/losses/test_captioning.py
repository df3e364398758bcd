"""The captioning term: which step trains which network, what is logged, and resuming."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import NonSaturating, Relativistic
from imagen_pl.losses.base import LossInputs
from imagen_pl.losses.captioning import Captioning
from imagen_pl.models.captioner.image_features import DiscriminatorFeatures
from imagen_pl.models.captioner.weights import save_weights
from imagen_pl.models.discriminators.base import ImageFeatures
from imagen_pl.schedules import Linear
from imagen_pl.types import Growth
from tests.helpers.captioners import tiny_captioner, tiny_captioning
from tests.helpers.networks import small_discriminator, text_features
from tests.helpers.training import (
    Remember,
    SaveAt,
    adam,
    assert_same,
    batches_until,
    sgd,
    tiny_data,
    tiny_gan,
    train,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ("red heart", "blue cat", "green square", "red cat", "blue heart", "a hat", "a sun", "one")


def captions(count: int) -> list[str]:
    return [WORDS[i % len(WORDS)] for i in range(count)]


def inputs(count: int = 8, empty: int = 0, seed: int = 0) -> LossInputs:
    """Images of noise with captions, the last `empty` of which were dropped."""
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    words = captions(count - empty) + [""] * empty
    seen = ImageFeatures({8: torch.zeros(count, 4, 8, 8)}, torch.zeros(count, 4))
    return LossInputs(images, seen, text_features(count), Growth(8), words)


def teach(term: Captioning, images: LossInputs) -> Tensor:
    """The generator's step."""
    return term(small_discriminator(), NonSaturating(), images)


def fit(gan: TextToImageGAN, images: int, callbacks: Sequence[Callback] = (), **settings: Any) -> None:
    """As `train`, with a fifth of the captions dropped; Lightning counts the captioner's steps too."""
    term, batches = gan.losses.separately_trained, batches_until(images)
    assert isinstance(term, Captioning)
    steps = 2 * batches + (0 if term.freeze else -(-batches // term.every))
    train(gan, images, callbacks, data=tiny_data(caption_dropout=0.2), max_steps=steps, **settings)
    assert gan.images_seen == images


# ------------------------------------------------------------------ values


def test_loss_is_the_captioner_s_cross_entropy() -> None:
    term, images = tiny_captioning(tiny_captioner(dropout=0.5)), inputs()
    loss = teach(term, images)
    captioner = term.captioner.eval()
    expected = captioner.cross_entropy(captioner.extract_features(images.images), images.captions)
    torch.testing.assert_close(loss, expected)  # without dropout, although the module is in training mode
    assert term.take_notes().keys() == {"unweighted"}


def test_log_likelihood_is_minus_the_sum_over_tokens() -> None:
    captioner, images = tiny_captioner().eval(), inputs(empty=1)
    memory = captioner.extract_features(images.images)
    tokens = torch.tensor([len(each) + 1 for each in captioner.tokens.encode(images.captions[:-1])] + [0])
    expected = -captioner.cross_entropy(memory, images.captions) * tokens
    torch.testing.assert_close(captioner.log_likelihood(memory, images.captions), expected)


def test_contrast_prefers_the_own_caption_to_a_similar_one() -> None:
    """Value, notes, and which images it leaves alone: "a hat" has "a sun", "one" has no similar caption."""
    term, images = tiny_captioning(contrast=2.0), inputs()
    term.prepare(lambda: WORDS)
    plain = tiny_captioning()
    plain.prepare(lambda: WORDS)
    torch.manual_seed(0)
    loss, without = teach(term, images), teach(plain, images)
    captioner = term.captioner.eval()
    memory = captioner.extract_features(images.images)
    own = captioner.log_likelihood(memory, images.captions)
    hat, sun = images.captions.index("a hat"), images.captions.index("a sun")
    swapped = [{"a hat": "a sun", "a sun": "a hat"}.get(text, text) for text in images.captions]
    other = captioner.log_likelihood(memory, swapped)
    for row in (hat, sun):
        expected = without[row] + 2 * torch.nn.functional.softplus(other[row] - own[row])
        torch.testing.assert_close(loss[row], expected)
    assert loss[images.captions.index("one")] == without[images.captions.index("one")]
    assert term.take_notes().keys() == {"unweighted", "prefers_own"}
    with pytest.raises(UserError, match=r"captioning.contrast -1 must be 0 or more"):
        tiny_captioning(contrast=-1)


def test_real_images_log_the_loss_of_shuffled_captions() -> None:
    term, images = tiny_captioning(), inputs()
    loss = term.training_loss(images)
    captioner = term.captioner
    memory = captioner.extract_features(images.images)
    torch.testing.assert_close(loss, captioner.cross_entropy(memory, images.captions))
    shuffled = captioner.cross_entropy(memory.roll(1, 0), images.captions).mean()
    torch.testing.assert_close(term.take_notes()["shuffled"], shuffled.detach())
    torch.testing.assert_close(term.averages, torch.stack([loss.mean(), shuffled]).detach())


def test_dropped_captions_have_no_loss() -> None:
    whole, dropped = tiny_captioning(), tiny_captioning()
    few, many = inputs(6), inputs(8, empty=2)
    many.images[:6] = few.images
    loss = dropped.training_loss(many)
    assert not loss[6:].any()
    whole.training_loss(few)
    torch.testing.assert_close(dropped.averages[0], whole.averages[0])


def test_share_selects_part_of_the_images() -> None:
    half, whole = tiny_captioning(share=0.5), tiny_captioning()
    many = inputs(8)
    few = LossInputs(many.images[:4], many.features, many.text, many.growth, many.captions[:4])
    torch.testing.assert_close(teach(half, many), teach(whole, few))
    torch.testing.assert_close(half.training_loss(many), whole.training_loss(few))
    assert torch.equal(half.averages, whole.averages)
    for share in (0.0, 1.5):
        with pytest.raises(UserError, match=rf"captioning\.share {share} must be above 0 and at most 1"):
            tiny_captioning(share=share)


def test_single_image_has_no_shuffled_caption() -> None:
    term = tiny_captioning()
    assert is_finite(term.training_loss(inputs(1)))
    assert not term.measured
    assert not term.take_notes()


def is_finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())


# ------------------------------------------------------------------ in a training


def everything(**settings: Any) -> TextToImageGAN:
    captioner = tiny_captioner(dropout=0.1, **settings)
    term = tiny_captioning(
        captioner, generator_weight=Linear(0.0, 1.0, kimg=0.1), from_resolution=16, every=2, share=0.5
    )
    return tiny_gan(losses=[term])


def state(gan: TextToImageGAN) -> dict[str, Any]:
    return {
        "weights": gan.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in gan.trainer.optimizers],
    }


@pytest.mark.parametrize("features", ["pixels", "discriminator"])
def test_resumed_equals_uninterrupted(features: str, tmp_path: Path) -> None:
    def made() -> TextToImageGAN:
        chosen = {"features": DiscriminatorFeatures(channels=8)} if features == "discriminator" else {}
        return everything(**chosen)

    paths = {clock: tmp_path / f"{clock}.ckpt" for clock in (40, 96)}
    whole = made()
    fit(whole, 160, [SaveAt(paths)])
    for clock, path in paths.items():
        assert torch.load(path, weights_only=True)["images_seen"] == clock
        torch.manual_seed(clock)
        resumed = made()
        with torch.no_grad():
            for parameter in resumed.parameters():
                parameter.add_(1)
        fit(resumed, 160, ckpt_path=path)
        assert_same(state(resumed), state(whole))


class Movers(Callback):
    """Keeps which networks have gradients at each optimizer's step."""

    def __init__(self) -> None:
        self.by_optimizer: list[list[set[str]]] = [[], [], []]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        moved = {name.split(".")[0] for name, p in pl_module.named_parameters() if p.grad is not None}
        self.by_optimizer[trainer.optimizers.index(optimizer)].append(moved)


def test_each_step_trains_its_own_network_only() -> None:
    movers = Movers()
    fit(tiny_gan(losses=[tiny_captioning()]), 32, [movers])
    assert movers.by_optimizer == [[{"discriminator"}] * 4, [{"generator"}] * 4, [{"losses"}] * 4]


def test_generator_step_trains_the_generator_only() -> None:
    term = tiny_captioning()
    images = inputs()
    images.images.requires_grad_()
    term.captioner.requires_grad_(False)  # as the system does in the generator's step
    teach(term, images).mean().backward()
    assert images.images.grad is not None
    assert bool(images.images.grad.any(dim=(1, 2, 3)).all())
    assert all(parameter.grad is None for parameter in term.parameters())


def test_loss_is_logged_and_its_weight_follows_the_stages() -> None:
    logged = Remember()
    gan = tiny_gan(losses=[tiny_captioning(from_resolution=16)])
    fit(gan, 96, logger=logged, log_every_n_steps=1)
    assert sorted(logged.column("train/caption_ce")) == [*range(8, 97, 8)]
    assert sorted(logged.column("train/caption_ce_shuffled")) == [*range(8, 97, 8)]
    assert sorted(logged.column("train/g_caption_ce")) == [*range(72, 97, 8)]  # 16 px begins at 64
    assert logged.column("train/g_caption_ce_unweighted") == logged.column("train/g_caption_ce")


def test_accumulated_batches_equal_a_whole_batch() -> None:
    """With SGD: Adam would make full steps of the rounding errors in gradients that are zero."""
    runs = []
    for accumulate in (1, 2):
        term = Captioning(tiny_captioner(), sgd(0.1), generator_weight=0.0)
        before = {name: p.detach().clone() for name, p in term.captioner.named_parameters()}
        fit(tiny_gan(losses=[term], accumulate=accumulate), 16)
        runs.append(weights_of(term.captioner))
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, rtol=1e-5, atol=1e-6)
    assert max(float((runs[0][name] - value).abs().max()) for name, value in before.items()) > 0.01


@pytest.mark.parametrize(("features", "looks"), [(None, 4), (DiscriminatorFeatures(8, 8), 5)])
def test_discriminator_features_are_computed_only_if_needed(
    features: DiscriminatorFeatures | None, looks: int
) -> None:
    """The features that each step computes; the captioner step adds one or none."""
    captioner = tiny_captioner() if features is None else tiny_captioner(features=features)
    gan = tiny_gan(losses=[tiny_captioning(captioner)], adversarial=Relativistic())
    look, calls = gan.discriminator.extract_features, []

    def counted(images: Tensor, growth: Growth | None = None) -> ImageFeatures:
        calls.append(images)
        return look(images, growth)

    gan.discriminator.extract_features = counted  # type: ignore[method-assign]
    train(gan, 8)

    assert len(calls) == looks


def test_loss_is_finite_in_half_precision() -> None:
    term = tiny_captioning(tiny_captioner(features=DiscriminatorFeatures(channels=8)))
    fit(tiny_gan(losses=[term]), 16, precision="bf16-mixed")
    assert is_finite(term.averages)
    assert term.averages.any()


def test_missing_discriminator_maps_raise_at_once() -> None:
    term = tiny_captioning(tiny_captioner(features=DiscriminatorFeatures(channels=3)))
    with pytest.raises(UserError, match=r"features\.channels is 3, .* 8 px has 8: set it to 8"):
        tiny_gan(losses=[term])


# ------------------------------------------------------------------ from an earlier captioner


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A captioner's folder, with tokens of its own."""
    captioner = tiny_captioner()
    captioner.prepare(lambda: ["number one", "number two"])
    with torch.no_grad():
        for parameter in captioner.parameters():
            parameter.add_(0.01)
    return save_weights(captioner, tmp_path / "captioner").parent


def test_frozen_captioner_does_not_change(earlier: Path) -> None:
    logged = Remember()
    term = tiny_captioning(captioner_from=str(earlier), freeze=True)
    gan = tiny_gan(losses=[term])
    fit(gan, 32, logger=logged, log_every_n_steps=1)
    expected = tiny_captioning(captioner_from=str(earlier))
    expected.prepare(list)
    assert_same(weights_of(term.captioner), weights_of(expected.captioner))
    assert not gan.trainer.optimizers[2].state
    assert (
        sorted(logged.column("train/caption_ce"))
        == sorted(logged.column("train/caption_ce_shuffled"))
        == [8, 16, 24, 32]
    )
    assert "train/caption_ce_grad_norm" not in {name for _, row in logged.rows for name in row}


def test_loaded_captioner_is_trained_further(earlier: Path) -> None:
    term = tiny_captioning(captioner_from=str(earlier))
    before = tiny_captioning(captioner_from=str(earlier))
    before.prepare(list)
    fit(tiny_gan(losses=[term]), 32)
    assert torch.equal(*(t.captioner.get_buffer("tokens.merges") for t in (term, before)))
    assert not torch.equal(term.captioner.norm.weight, before.captioner.norm.weight)


def test_freeze_needs_captioner_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="freeze needs a trained captioner: name one"):
        tiny_captioning(freeze=True)
    with pytest.raises(UserError, match=r"there is no captioner\.safetensors"):
        fit(tiny_gan(losses=[tiny_captioning(captioner_from=str(tmp_path))]), 8)


# ------------------------------------------------------------------ warning of an untrained captioner


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "imagen_pl.losses.captioning"]


def test_untrained_captioner_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    term = tiny_captioning()
    with caplog.at_level(logging.WARNING, "imagen_pl"):
        for step in range(25):
            term.training_loss(inputs(seed=step))  # new noise each time: nothing can be learnt from it
            teach(term, inputs())
            assert len(warnings(caplog)) == (step >= 19)
    (line,) = warnings(caplog)
    own, shuffled = term.averages.tolist()
    assert abs(shuffled - own) < 0.1
    assert "real images fit their own captions (train/caption_ce 5." in line
    assert "teaches the generator nothing" in line
    assert "captioner_from" in line
    assert "\n" not in line


def test_trained_captioner_gives_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    term, images = tiny_captioning(), inputs()
    term.captioner.prepare(lambda: list(WORDS) * 2)
    optimizer = adam(1e-2)(term.parameters())
    with caplog.at_level(logging.WARNING, "imagen_pl"):
        for _ in range(150):
            optimizer.zero_grad()
            term.training_loss(images).mean().backward()
            optimizer.step()
        teach(term, images)
    own, shuffled = term.averages.tolist()
    assert shuffled - own > 0.1
    assert not warnings(caplog)


def test_measured_margin_is_saved_in_the_checkpoint() -> None:
    first, second = tiny_captioning(), tiny_captioning()
    for step in range(3):
        first.training_loss(inputs(seed=step))
    second.load_state_dict(first.state_dict())
    for term in (first, second):
        term.training_loss(inputs(seed=9))
    assert torch.equal(first.averages, second.averages)
    assert int(second.measured) == 4
