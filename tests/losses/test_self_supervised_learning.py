"""The pretext tasks: they can be learnt, their effect on the generator, and their settings."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from imagen_pl.losses.colorization import Colorization
from imagen_pl.losses.gradient_penalties import R1
from imagen_pl.losses.instance_discrimination import InstanceDiscrimination
from imagen_pl.losses.reconstruction import Reconstruction
from imagen_pl.losses.self_supervised import Rotation, SelfSupervisedTask
from imagen_pl.losses.text_matching import ImageTextContrastive
from imagen_pl.models.augment import DiffAugment
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.schedules import Linear
from tests.helpers.networks import small_generator, text_features
from tests.helpers.pretext import ask, eight_pictures, learner, noise, task_for
from tests.helpers.tasks import NAMES, tiny_task, tiny_tasks
from tests.helpers.training import SHORT, Remember, tiny_gan, train, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------ learning


def losses_of(task: SelfSupervisedTask, discriminator: Discriminator, seeds: range) -> list[float]:
    """The mean loss on the eight pictures, over several random tasks."""
    losses = []
    with torch.no_grad():
        for seed in seeds:
            torch.manual_seed(seed)
            losses.append(float(ask(task, discriminator, eight_pictures()).mean()))
    return losses


@functools.cache
def overfit(name: str) -> tuple[SelfSupervisedTask, Discriminator]:
    """A task and a discriminator that have learnt eight pictures."""
    task, discriminator, pictures, steps = task_for(name), learner(), eight_pictures(), 150
    learners = [*task.parameters(), *discriminator.parameters()]
    optimizer = torch.optim.Adam(learners, lr=5e-3, betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        ask(task, discriminator, pictures).mean().backward()
        optimizer.step()
        rate.step()
    optimizer.zero_grad()
    return task.requires_grad_(False), discriminator.requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "floor"),
    [("rotation", 0.02), ("reconstruction", 0.12), ("colorization", 0.25), ("instance", 0.15)],
)
def test_each_task_overfits_eight_images(name: str, floor: float) -> None:
    """The loss falls to a small part of its initial value, for every random task."""
    unseen = range(1000, 1005)
    before = losses_of(task_for(name), learner(), unseen)
    task, discriminator = overfit(name)
    after = losses_of(task, discriminator, unseen)

    notes = {key: float(value) for key, value in task.take_notes().items()}
    assert sum(after) < floor * sum(before)
    assert notes.get("accuracy", 1.0) > 0.85
    assert notes.get("of_mean", 0.0) < 0.3


@pytest.mark.parametrize(
    ("name", "chance"),
    [("rotation", math.log(4)), ("instance", math.log(8))],
)
def test_each_task_starts_at_chance(name: str, chance: float) -> None:
    """On images that it was not trained on."""
    task, discriminator = task_for(name), learner()
    with torch.no_grad():
        losses = []
        for seed in range(8):
            torch.manual_seed(seed)
            losses.append(float(ask(task, discriminator, noise(seed=seed)).mean()))

    assert sum(losses) / 8 == pytest.approx(chance, abs=0.25)


@pytest.mark.parametrize("name", NAMES)
def test_each_task_gives_the_generator_useful_gradients(name: str) -> None:
    """A few generator steps against the trained task; neither task nor discriminator changes."""
    task, discriminator = overfit(name)
    generator, text = small_generator({4: 8, 8: 8, 16: 8}), text_features(8)
    z = torch.randn(8, generator.latent_dim, generator=torch.Generator().manual_seed(0))
    frozen = [p.clone() for p in (*task.parameters(), *discriminator.parameters())]
    optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3)

    def loss() -> Tensor:
        total = torch.zeros(())
        for seed in range(3):
            torch.manual_seed(seed)
            total = total + ask(task, discriminator, generator(z, text)).mean() / 3
        return total

    start = float(loss().detach())
    for _ in range(8):
        optimizer.zero_grad()
        loss().backward()
        assert all(p.grad is None for p in (*task.parameters(), *discriminator.parameters()))
        optimizer.step()

    assert float(loss().detach()) < 0.9 * start
    now = (*task.parameters(), *discriminator.parameters())
    assert all(torch.equal(a, b) for a, b in zip(frozen, now, strict=True))


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("task", "name", "weights", "from_resolution"),
    [
        (Rotation(), "rotation", (1.0, 0.2), 4),
        (Reconstruction(), "reconstruction", (1.0, 0.0), 16),
        (Colorization(), "colorization", (1.0, 0.0), 8),
        (InstanceDiscrimination(), "instance", (1.0, 0.1), 8),
        (Rotation(discriminator_weight=0.5, generator_weight=0.1), "rotation", (0.5, 0.1), 4),
    ],
)
def test_weights_depend_on_step_and_resolution(
    task: SelfSupervisedTask, name: str, weights: tuple[float, float], from_resolution: int
) -> None:
    assert task.name == name
    assert (task.weight("discriminator", 0, 32), task.weight("generator", 0, 32)) == weights
    assert task.weight("discriminator", 0, from_resolution) == weights[0]
    assert task.weight("discriminator", 0, from_resolution // 2) == 0


def test_weight_can_follow_a_schedule() -> None:
    task = Colorization(generator_weight=Linear(0.0, 1.0, kimg=1.0))
    assert [task.weight("generator", seen, 32) for seen in (0, 500, 2000)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            lambda: Rotation(256),
            "Rotation.image_dim is 256, but the discriminator's final_dim is 8: set it to 8",
        ),
        (
            lambda: InstanceDiscrimination(16),
            "InstanceDiscrimination.image_dim is 16, but the discriminator's final_dim is 8: set it to 8",
        ),
        (
            lambda: Colorization(128),
            "Colorization.map_channels is 128, but the discriminator's map of 8 px is 8: set it to 8",
        ),
        (
            lambda: Colorization(8, map_resolution=4),
            "Colorization reads a map of 4 px, but the discriminator's are of [8, 16, 32] px: change "
            "map_resolution",
        ),
        (
            lambda: Colorization(4, map_resolution=16),
            "Colorization.from_resolution 8 must be 16 or more: smaller images have no map of 16 px",
        ),
        (
            lambda: Reconstruction(8, 64),
            "Reconstruction.finer_channels is 64, but the discriminator's map of 16 px is 4: set it to 4",
        ),
        (
            lambda: Reconstruction(8, 4, image_resolution=16),
            "Reconstruction.image_resolution is 16, but the discriminator grows to 32 px: set it to 32",
        ),
        (
            lambda: Reconstruction(8, 4, from_resolution=8),
            "Reconstruction.from_resolution 8 must be 16 or more: smaller images have no map of 16 px",
        ),
        (lambda: Rotation(8, share=0.0), "Rotation.share 0.0 must be above 0 and at most 1"),
        (lambda: Rotation(8, share=1.5), "Rotation.share 1.5 must be above 0 and at most 1"),
        (
            lambda: InstanceDiscrimination(8, temperature=0.0),
            "InstanceDiscrimination.temperature 0.0 must be above 0",
        ),
    ],
)
def test_mismatched_sizes_raise_before_the_first_batch(
    task: Callable[[], SelfSupervisedTask], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_gan(losses=[task()])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((256, 16), "ImageTextContrastive.image_dim is 256, but the discriminator's final_dim is 8"),
        ((8, 384), "ImageTextContrastive.text_dim is 384, but the discriminator's text_dim is 16"),
    ],
)
def test_the_contrastive_term_s_sizes_are_checked_too(sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_gan(losses=[ImageTextContrastive(*sizes)])


# ------------------------------------------------------------------ in training


def test_all_tasks_train_together_and_are_logged() -> None:
    """With augmentation, bfloat16, micro-batches and growth, every logged loss is finite."""
    logged = Remember()
    gan = tiny_gan(losses=tiny_tasks(), augment=DiffAugment(), accumulate=2, penalties=[R1(0.5)])
    before = weights_of(gan.losses)

    train(gan, 80, stages=SHORT, logger=logged, precision="bf16-mixed", log_every_n_steps=1)

    notes = {
        "rotation": ["accuracy"],
        "reconstruction": ["whole", "part"],
        "colorization": ["of_mean"],
        "instance": ["accuracy"],
    }
    for name, keys in notes.items():
        for step in "dg":
            for column in (f"{step}_{name}", *(f"{step}_{name}_{key}" for key in keys)):
                numbers = logged.column(f"train/{column}")
                assert numbers, column
                assert all(math.isfinite(value) for value in numbers.values()), column
    assert min(logged.column("train/d_reconstruction")) == 24  # 16 px come after 16 images
    after = weights_of(gan.losses)
    assert all(not torch.equal(before[k], after[k]) for k in before if not k.endswith("probability"))


def test_task_without_weight_trains_nothing() -> None:
    runs = []
    for tasks in ([], [tiny_task("rotation", generator_weight=0.0)]):
        for task in tasks:
            task.discriminator_weight = 0.0
        gan = tiny_gan(losses=tasks)
        train(gan, 32)
        runs.append(weights_of(gan))
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name
