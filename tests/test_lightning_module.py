"""The training step: which network is trained when, micro-batches, clipping, and non-finite losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import Relativistic
from imagen_pl.losses.gradient_penalties import R1, R2, Images, LogitFn, Penalty
from imagen_pl.models.augment import DiffAugment
from imagen_pl.models.latents import latents, mix_seed
from imagen_pl.schedules import Linear, Stage
from imagen_pl.types import TextFeatures
from tests.helpers.fakes import TinyText
from tests.helpers.training import (
    AtEachBatch,
    Remember,
    StepGradients,
    sgd,
    tiny_data,
    tiny_gan,
    tiny_trainer,
    train,
    weights_of,
)

FADING = (Stage(8, kimg=0.016, batch_size=8), Stage(16, kimg=1.0, batch_size=8, fade_kimg=0.032))


def steady(**settings: Any) -> TextToImageGAN:
    """Plain gradient descent: small differences stay small."""
    return tiny_gan(generator_optimizer=sgd(), discriminator_optimizer=sgd(), **settings)


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], within: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=within, rtol=within)


# ------------------------------------------------------------------ micro-batches


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_equal_the_whole_batch(parts: int) -> None:
    runs = []
    for accumulate in (1, parts):
        gan = steady(accumulate=accumulate, penalties=[R1(0.5), R2(0.5, every=2)])
        gradients = StepGradients()
        train(gan, 64, [gradients], stages=FADING)
        runs.append((gradients.steps, weights_of(gan)))
    (whole, weights), (in_parts, weights_in_parts) = runs
    assert len(whole) == len(in_parts) == 16
    for one, other in zip(whole, in_parts, strict=True):
        assert one[:2] == other[:2]
        assert_close(one[2], other[2], 1e-6)
    assert_close(weights, weights_in_parts, 1e-6)


def test_uneven_parts_are_weighted_by_size() -> None:
    """Where no growth checks the batch size: 8 images in parts of 3, 3 and 2."""
    runs = []
    for accumulate in (1, 3):
        gan = steady(accumulate=accumulate, channels_last=False)
        gradients = StepGradients()
        trainer = tiny_trainer(8, [gradients], stages=(Stage(32, kimg=1, batch_size=8),))
        trainer.callbacks[:] = [gradients]  # type: ignore[attr-defined]
        trainer.fit(gan, tiny_data(resolution=32, batch_size=8))
        runs.append(gradients.steps)
    assert [step[:2] for step in runs[0]] == [(0, "d"), (0, "g")]
    for one, other in zip(*runs, strict=True):
        assert_close(one[2], other[2], 1e-6)


def test_a_penalty_of_half_the_batch_reads_its_first_rows_alone() -> None:
    """Real images, generated images and captions of the same rows."""
    rows: list[tuple[Tensor, Tensor, Tensor]] = []

    class Recorder(Penalty):
        name = "recorder"

        def __call__(self, logit_fn: LogitFn, real: Images, fake: Images, text: TextFeatures) -> Tensor:
            rows.append((real, fake, text.pooled))
            return logit_fn(real, text).mean(1)

    for share in (0.5, 1.0):
        train(steady(penalties=[Recorder(1.0, share=share)]), 8)
    half, whole = rows
    assert [len(part) for part in half] == [4, 4, 4]
    for part, of_all in zip(half, whole, strict=True):
        torch.testing.assert_close(part, of_all[:4])


# ------------------------------------------------------------------ which network is trained


def test_each_step_changes_only_its_own_network() -> None:
    """Neither its weights nor its gradients."""
    gan = tiny_gan(adversarial=Relativistic(), penalties=[R1(1.0)])
    gradients = StepGradients()
    after_step: list[dict[str, Tensor]] = []

    def check_gradients(gan: TextToImageGAN, batch: Any) -> None:
        assert all(parameter.grad is None for parameter in gan.parameters())

    class Weights(AtEachBatch):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            after_step.append(weights_of(pl_module))

    start = weights_of(gan)
    train(gan, 16, [gradients, Weights(after=check_gradients)], stages=FADING)
    assert [which for _, which, _ in gradients.steps] == ["d", "g", "d", "g"]
    own = {"d": "discriminator.", "g": "generator."}
    for _, which, found in gradients.steps:
        assert found
        assert all(name.startswith(own[which]) for name in found)
    for before, after, which in zip([start, *after_step], after_step, "dgdg", strict=False):
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        networks = {name for name in moved if name.split(".")[0] in ("discriminator", "generator")} - {
            "generator.latent_mean"
        }
        assert networks
        assert all(name.startswith(own[which]) for name in networks)


def test_frozen_parameters_stay_frozen() -> None:
    """A step switches the other network off and on again; what was off before must stay off."""
    gan = tiny_gan(penalties=[R1(1.0)], adversarial=Relativistic())
    frozen = {
        *(f"discriminator.grown.8.{n}" for n, _ in gan.discriminator.blocks()[8].named_parameters()),
        *(f"generator.mapping.{n}" for n, _ in gan.generator.mapping.named_parameters()),  # type: ignore[union-attr]
    }

    def freeze(gan: TextToImageGAN, batch: Any) -> None:
        for name, parameter in gan.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)

    before = weights_of(gan)
    train(gan, 48, [AtEachBatch(before=freeze)], stages=FADING)
    after = weights_of(gan)
    assert len(frozen) > 8
    for name, parameter in gan.named_parameters():
        if name in frozen:
            assert not parameter.requires_grad, name
            assert torch.equal(before[name], after[name]), name
        elif name.startswith(("generator.grown.8.", "discriminator.to_final.")):
            assert parameter.requires_grad, name
            assert not torch.equal(before[name], after[name]), name


def test_shared_passes_run_once_and_give_the_same_gradients() -> None:
    """With a frozen discriminator, both ways must give the generator the same gradients."""
    runs = []
    for share_passes in (False, True):
        gan = tiny_gan(
            discriminator_optimizer=sgd(0.0), share_passes=share_passes, adversarial=Relativistic()
        )
        drawn: list[int] = []
        gan.generator.register_forward_hook(lambda *_, drawn=drawn: drawn.append(1))
        train(gan, 48)
        runs.append((weights_of(gan.generator), len(drawn)))
    (own, own_passes), (shared, shared_passes) = runs
    assert_close(own, shared, 0.0)
    assert own_passes == 2 * shared_passes == 12


def images_read_by_the_discriminator(gan: TextToImageGAN) -> list[Tensor]:
    """Of one batch, in order of the passes."""
    seen: list[Tensor] = []
    forward = gan.discriminator.extract_features

    def watched(images: Tensor, growth: object = None) -> object:
        seen.append(images.detach().clone())
        return forward(images, growth)  # type: ignore[arg-type]

    gan.discriminator.extract_features = watched  # type: ignore[assignment,method-assign]
    train(gan, 8)
    return seen


def test_shared_passes_read_the_real_images_once() -> None:
    gan = tiny_gan(share_passes=True, adversarial=Relativistic())
    before = weights_of(gan.discriminator)

    _, fake_of_discriminator, fake_of_generator = images_read_by_the_discriminator(gan)

    assert torch.equal(fake_of_discriminator, fake_of_generator)
    assert any(not torch.equal(before[name], new) for name, new in weights_of(gan.discriminator).items())


def test_augmented_real_images_are_read_again_for_the_generator() -> None:
    """They must be augmented like the generated images that they are compared with."""
    gan = tiny_gan(share_passes=True, adversarial=Relativistic(), augment=DiffAugment())

    real, _, fake_of_generator, real_of_generator = images_read_by_the_discriminator(gan)

    assert real.shape == real_of_generator.shape == fake_of_generator.shape
    assert not torch.equal(real, real_of_generator)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_generator_steps_once_per_discriminator_steps(every: int) -> None:
    gan = tiny_gan(discriminator_steps=every)
    gradients = StepGradients()
    generator_at = [clock for clock in range(0, 48, 8) if (clock // 8) % every == 0]
    train(
        *(gan, 48, [gradients]),
        stages=(Stage(8, kimg=1, batch_size=8),),
        max_steps=6 + len(generator_at),
    )
    assert [clock for clock, which, _ in gradients.steps if which == "d"] == list(range(0, 48, 8))
    assert [clock for clock, which, _ in gradients.steps if which == "g"] == generator_at


def test_a_generator_step_counts_the_images_of_all_discriminator_steps() -> None:
    """The average's half-life is in images, so fewer steps of the generator move it as far."""
    shares = []
    for every in (1, 2):
        gan = tiny_gan(discriminator_steps=every, ema_halflife_kimg=0.016, ema_ramp=10.0)
        with torch.no_grad():
            for parameter in gan.ema.generator.parameters():
                parameter.zero_()
        gan.generator_optimizer = sgd(0.0)  # the generator is frozen, and the average approaches it
        train(gan, 32, stages=(Stage(8, kimg=1, batch_size=8),), max_steps=8 if every == 1 else 6)
        mean, now = (g.get_parameter("first_map.weight") for g in (gan.ema.generator, gan.generator))
        shares.append(float(mean.norm() / now.norm()))
    assert shares == pytest.approx([0.75, 0.75], abs=1e-5)


# ------------------------------------------------------------------ schedules of R3GAN


def test_second_beta_follows_its_schedule_in_both_optimizers() -> None:
    seen: list[list[tuple[float, float]]] = []

    def look(gan: TextToImageGAN, batch: object) -> None:
        seen.append([group["betas"] for o in gan.trainer.optimizers for group in o.param_groups])

    train(tiny_gan(beta2_schedule=Linear(0.9, 0.99, kimg=0.016)), 32, [AtEachBatch(after=look)])
    assert all(len({*groups}) == 1 for groups in seen)
    assert [groups[0] for groups in seen] == [pytest.approx((0.0, beta)) for beta in (0.9, 0.945, 0.99, 0.99)]


def test_schedule_of_the_second_beta_needs_an_optimizer_that_has_one() -> None:
    gan = tiny_gan(beta2_schedule=Linear(0.9, 0.99, kimg=1), generator_optimizer=sgd())
    with pytest.raises(UserError, match=r"model.beta2_schedule needs optimizers with betas"):
        train(gan, 8)


def test_penalty_s_schedule_counts_images() -> None:
    """Its weight is halved after the first batch, and 0 from the third one on."""
    losses = []
    for schedule in (None, Linear(1.0, 0.0, kimg=0.016)):
        gan = steady(penalties=[R1(1.0, schedule=schedule)])
        logger = Remember()
        train(gan, 32, logger=logger, log_every_n_steps=1)
        losses.append(list(logger.column("train/d_r1").values()))
    whole, falling = losses
    assert falling[0] == pytest.approx(whole[0])
    assert falling[1] == pytest.approx(whole[1] / 2, rel=0.2)  # the weights differ a little by then
    assert falling[2] == falling[3] == 0


# ------------------------------------------------------------------ clipping


@pytest.mark.parametrize("limit", [0.05, 1e6])
def test_gradient_clip_bounds_each_networks_norm(limit: float) -> None:
    runs = []
    for clip in (None, limit):
        gradients = StepGradients()
        train(steady(gradient_clip=clip, penalties=[R1(1.0)]), 8, [gradients])
        runs.append([found for _, _, found in gradients.steps])
    for free, clipped in zip(*runs, strict=True):
        norm = torch.cat([g.flatten() for g in free.values()]).norm()
        if limit > 1:
            assert norm < limit
            assert_close(free, clipped, 0)
            continue
        assert norm > limit
        assert torch.cat([g.flatten() for g in clipped.values()]).norm() == pytest.approx(limit, rel=1e-4)
        if "discriminator.to_final.weight" in free:  # the generator's step follows another discriminator
            assert_close({n: g * limit / norm for n, g in free.items()}, clipped, 1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: tiny_gan(text_encoder=TinyText(dim=24)),
            "model.generator.init_args.text_dim is 16, but the text encoder gives 24: set it to 24",
        ),
        (lambda: tiny_gan(accumulate=2, share_passes=True), "set share_passes to false or accumulate to 1"),
        (lambda: tiny_gan(accumulate=0), "model.accumulate 0 must be 1 or more"),
        (lambda: tiny_gan(discriminator_steps=0), "model.discriminator_steps 0 must be 1 or more"),
    ],
)
def test_invalid_settings_raise(make: Callable[[], TextToImageGAN], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


# ------------------------------------------------------------------ random numbers


def test_latents_depend_on_the_seed_and_the_index_alone() -> None:
    whole = latents(range(6), seed=3, latent_dim=5)
    assert torch.equal(latents([4, 1], 3, 5), whole[[4, 1]])
    assert not torch.equal(latents(range(6), 4, 5), whole)
    assert latents(range(4000), 0, 2).mean().abs() < 0.05
    assert latents(range(4000), 0, 2).std() == pytest.approx(1, abs=0.05)


def test_neighbouring_seeds_are_unrelated() -> None:
    seeds = {mix_seed(a, b, c) for a in range(12) for b in range(0, 96, 8) for c in range(4)}
    assert len(seeds) == 12 * 12 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    bits = torch.tensor([[seed >> k & 1 for k in range(63)] for seed in sorted(seeds)]).float()
    assert (bits.mean(0) - 0.5).abs().max() < 0.1


def test_a_sample_does_not_depend_on_its_batch() -> None:
    gan = tiny_gan()
    both = gan.sample(["number 1", "a longer caption"], seed=7)
    assert both.shape == (2, 3, 32, 32)
    torch.testing.assert_close(gan.sample(["number 1"], seed=7), both[:1], atol=1e-5, rtol=0)
    assert (gan.sample(["number 1"], seed=8) - both[:1]).abs().max() > 1e-3
