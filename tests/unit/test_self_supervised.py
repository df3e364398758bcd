"""The pretext tasks: what they give, that they can be learnt, and what they teach the generator."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen_pl.backbones import Backbone
from imagen_pl.data.augment import Augment, DiffAugment
from imagen_pl.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.losses.colour import Colour, opponents
from imagen_pl.losses.instance import InstanceContrast
from imagen_pl.losses.matching import ImageTextContrastive
from imagen_pl.losses.penalties import R1
from imagen_pl.losses.reconstruction import Decoder, Reconstruction, perceptual, quarter
from imagen_pl.losses.self_supervised import Rotation, SelfSupervisedTask
from imagen_pl.losses.terms import Shown
from imagen_pl.schedules import Linear
from imagen_pl.types import Growth, TextFeatures
from tests.networks import small_discriminator, small_generator, text_features
from tests.tasks import NAMES, tiny_task, tiny_tasks
from tests.training import Remember, tiny_system, train, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE, MAPS = 16, 16


class Sees(Discriminator):
    """Sees what a function says, and remembers what it was shown."""

    resolutions, text_dim, final_dim = (8, 16), 6, 4

    def __init__(self, see: Callable[[Tensor], ImageFeatures]) -> None:
        super().__init__()
        self.see, self.shown = see, []

    def look(self, images: Tensor, growth: Growth | None = None) -> ImageFeatures:
        self.shown.append(images)
        return self.see(images)

    def judge(self, features: ImageFeatures, text: TextFeatures) -> Tensor:
        return features.final[:, :1]

    def blocks(self) -> dict[int, nn.Module]:
        return {}


def pyramid(images: Tensor) -> ImageFeatures:
    """The image itself as its maps, and its corners' first channel as its vector."""
    corners = images[:, 0, [0, 0, -1, -1], [0, -1, -1, 0]]
    return ImageFeatures({16: images, 8: F.avg_pool2d(images, 2)}, corners)


def shown(discriminator: Discriminator, images: Tensor) -> Shown:
    growth = Growth(images.shape[-1])
    seen = discriminator.look(images, growth)
    return Shown(images, seen, text_features(len(images)), growth)


def ask(task: SelfSupervisedTask, discriminator: Discriminator, images: Tensor) -> Tensor:
    return task(discriminator, NonSaturating(), shown(discriminator, images))


def noise(count: int = 8, side: int = SIDE, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def eight_pictures() -> Tensor:
    """A coloured disc on a coloured ground each: no two alike, and none like itself when turned."""
    colours = torch.rand(2, 8, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y, x = torch.linspace(-1, 1, SIDE)[:, None], torch.linspace(-1, 1, SIDE)[None]
    discs = [(y + 0.5) ** 2 + (x - 0.6 + i / 10) ** 2 < 0.1 + 0.04 * i for i in range(8)]
    return torch.where(torch.stack(discs)[:, None], colours[0], colours[1])


def task_for(name: str, share: float = 1.0) -> SelfSupervisedTask:
    """Sized for `learner`."""
    torch.manual_seed(3)
    tasks = {
        "rotation": lambda: Rotation(MAPS, share),
        "reconstruction": lambda: Reconstruction(MAPS, MAPS, image_resolution=SIDE, width=16, share=share),
        "colour": lambda: Colour(MAPS, map_resolution=4, share=share),
        "instance": lambda: InstanceContrast(MAPS, 8, share=share),
    }
    return tasks[name]()


def learner() -> Discriminator:
    return small_discriminator(
        {4: MAPS, 8: MAPS, 16: MAPS}, final_dim=MAPS, heads_at=[], self_attention_at=[]
    )


# ------------------------------------------------------------------ what they give


def test_rotation_knows_each_way_up_from_the_others() -> None:
    """The bright corner of an upright image is its top left; a head that knows it is always right."""
    images = torch.full((8, 3, SIDE, SIDE), -1.0)
    images[:, :, 0, 0] = 1
    task, discriminator = Rotation(image_dim=4, share=1.0), Sees(pyramid)
    with torch.no_grad():
        # Corners are read clockwise; a turn to the left moves the first to the last.
        task.head.weight.copy_(5 * torch.eye(4)[[0, 3, 2, 1]])
        task.head.bias.zero_()

    loss = ask(task, discriminator, images)

    right = -math.log(math.exp(5) / (math.exp(5) + 3 * math.exp(-5)))
    torch.testing.assert_close(loss, torch.full((8,), right))
    assert task.take_notes() == {"accuracy": torch.tensor(1.0)}
    turned = discriminator.shown[-1]
    assert [int((turned[:, 0, y, x] > 0).sum()) for y in (0, -1) for x in (0, -1)] == [2, 2, 2, 2]


def test_rotation_turns_a_single_image_every_way() -> None:
    images, ways = torch.full((1, 3, SIDE, SIDE), -1.0), set()
    images[:, :, 0, 0] = 1
    for seed in range(20):
        torch.manual_seed(seed)
        discriminator = Sees(pyramid)
        ask(Rotation(image_dim=4, share=0.1), discriminator, images)
        ways.add(int((discriminator.shown[-1][0, 0] > 0).flatten().nonzero()))

    assert ways == {0, SIDE - 1, SIDE * (SIDE - 1), SIDE**2 - 1}


class Itself(nn.Module):
    """A decoder of a map that is the image already."""

    def forward(self, x: Tensor, side: int) -> Tensor:
        assert x.shape[-1] == side
        return x


def test_reconstruction_asks_for_the_image_at_half_its_side_and_for_the_quarter_that_was_shown() -> None:
    task = Reconstruction(3, 3, image_resolution=SIDE, share=1.0)
    task.whole, task.part = Itself(), Itself()
    images = noise()

    assert not ask(task, Sees(pyramid), images).any()

    brighter = Sees(lambda x: pyramid(x + 0.25))
    torch.testing.assert_close(ask(task, brighter, images), torch.full((8,), 0.25))
    notes = task.take_notes()
    assert [round(float(notes[name]), 5) for name in ("whole", "part")] == [0.25, 0.25]


def test_quarters_are_the_image_s_own() -> None:
    x = noise(4)
    places = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])

    quarters = quarter(x, places)

    upper, lower = slice(0, 8), slice(8, 16)
    for i, (rows, columns) in enumerate([(upper, upper), (upper, lower), (lower, upper), (lower, lower)]):
        assert torch.equal(quarters[i], x[i, :, rows, columns])


def test_a_decoder_draws_at_every_size_on_its_way() -> None:
    decoder = Decoder(5, width=16, doublings=2)
    for side in (8, 16, 32):
        assert decoder(torch.zeros(2, 5, 8, 8), side).shape == (2, 3, side, side)


class Colours(Backbone):
    """One map: the image itself, scaled; so only the direction of a pixel's colour counts."""

    name, size = "colours", 8
    channels = (3,)  # type: ignore[assignment]

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [5 * images]

    def _read(self) -> nn.Module:
        raise AssertionError("it needs no network")

    _channels = _maps = _normalisation = None  # type: ignore[assignment]


def test_a_backbone_adds_its_own_distance() -> None:
    red, green = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    red[:, 0], green[:, 1] = 1, 1

    torch.testing.assert_close(perceptual(Colours(), red, green), torch.full((2,), 2.0))
    assert not perceptual(Colours(), red, 0.5 * red).any()

    losses = []
    for backbone in (None, Colours()):
        task = Reconstruction(3, 3, image_resolution=SIDE, share=1.0, backbone=backbone)
        task.whole, task.part = Itself(), Itself()
        torch.manual_seed(0)  # the same quarters
        losses.append(ask(task, Sees(lambda x: pyramid(-x)), noise(2)))
    torch.testing.assert_close(losses[1] - losses[0], torch.full((2,), 4.0))  # opposite colours


@pytest.mark.parametrize(
    ("rgb", "grey", "blue_yellow", "red_cyan"),
    [
        ((1, 1, 1), 1, 0, 0),
        ((-0.5, -0.5, -0.5), -0.5, 0, 0),
        ((-1, -1, 1), -0.772, 1, -0.228 / 1.402),
        ((1, -1, -1), -0.402, -0.598 / 1.772, 1),
        ((-1, 1, 1), 0.402, 0.598 / 1.772, -1),
    ],
    ids=["white", "grey", "blue", "red", "cyan"],
)
def test_opponent_colours(
    rgb: tuple[float, float, float], grey: float, blue_yellow: float, red_cyan: float
) -> None:
    image = torch.tensor(rgb).float()[None, :, None, None].expand(1, 3, 2, 2)

    lightness, colours = opponents(image)

    torch.testing.assert_close(lightness, torch.full((1, 1, 2, 2), float(grey)))
    torch.testing.assert_close(colours[0, :, 0, 0], torch.tensor([blue_yellow, red_cyan]).float())


def test_colour_is_told_from_grey_at_each_place() -> None:
    task, discriminator, images = Colour(map_channels=3, share=1.0), Sees(pyramid), noise()
    with torch.no_grad():
        task.head.weight.zero_()
        task.head.bias.copy_(torch.tensor([0.1, -0.2]))

    loss = ask(task, discriminator, images)

    grey = discriminator.shown[-1]
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])
    true = F.avg_pool2d(opponents(images)[1], 2)  # 8 places a side
    gap = (true - torch.tensor([0.1, -0.2])[:, None, None]).abs()
    torch.testing.assert_close(loss, gap.mean((1, 2, 3)))
    unknowing = torch.stack([c - c.mean() for c in true.unbind(1)]).abs().mean()
    torch.testing.assert_close(task.take_notes()["of_mean"], gap.mean() / unknowing)


class Negative(Augment):
    """Turns images into their negatives."""

    def forward(self, images: Tensor) -> Tensor:
        return -images


def test_views_find_each_other_by_how_alike_they_are() -> None:
    """Views that meet in the same place: the answer follows from the temperature and the batch alone."""
    images = torch.zeros(4, 3, SIDE, SIDE)
    images[:, 0].flatten(1)[:, :4] = torch.eye(4)
    discriminator = Sees(lambda x: ImageFeatures({}, x[:, 0].flatten(1)[:, :4].abs()))
    task = InstanceContrast(image_dim=4, temperature=0.5, augment=Negative(), share=0.5)
    task.first, task.second = nn.Identity(), nn.Identity()  # type: ignore[assignment]

    loss = ask(task, discriminator, images)

    assert torch.equal(discriminator.shown[-1], -images[:2])
    by_changed = math.log(1 + 3 * math.exp(-2))  # one of the batch's four
    by_seen = math.log(1 + math.exp(-2))  # one of the two that were changed
    torch.testing.assert_close(loss, torch.full((2,), (by_changed + by_seen) / 2))
    assert float(task.take_notes()["accuracy"]) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("share", "asked"), [(1.0, 8), (0.25, 2), (0.3, 2), (0.01, 1)])
def test_a_share_of_the_images_is_asked_about(name: str, share: float, asked: int) -> None:
    discriminator, looks = learner(), []
    look = discriminator.look
    discriminator.look = lambda images, growth: looks.append(len(images)) or look(images, growth)  # type: ignore

    loss = ask(task_for(name, share), discriminator, noise())

    assert looks == [8, asked]
    assert loss.shape == (asked,)
    assert torch.isfinite(loss).all()


# ------------------------------------------------------------------ learning


def losses_of(task: SelfSupervisedTask, discriminator: Discriminator, seeds: range) -> list[float]:
    """The mean loss on the eight pictures, by several draws of what is asked."""
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
    ("name", "floor"), [("rotation", 0.02), ("reconstruction", 0.12), ("colour", 0.25), ("instance", 0.15)]
)
def test_each_learns_eight_images_by_heart(name: str, floor: float) -> None:
    """To a small part of what it cost at first, whatever is asked of them."""
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
def test_each_starts_at_chance(name: str, chance: float) -> None:
    """On images that it knows nothing of."""
    task, discriminator = task_for(name), learner()
    with torch.no_grad():
        losses = []
        for seed in range(8):
            torch.manual_seed(seed)
            losses.append(float(ask(task, discriminator, noise(seed=seed)).mean()))

    assert sum(losses) / 8 == pytest.approx(chance, abs=0.25)


@pytest.mark.parametrize("name", NAMES)
def test_each_shows_the_generator_a_way_down(name: str) -> None:
    """A few steps of a generator against what was learnt; neither task nor discriminator moves."""
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


# ------------------------------------------------------------------ what the system asks of each


@pytest.mark.parametrize(
    ("task", "name", "weights", "from_resolution"),
    [
        (Rotation(), "rotation", (1.0, 0.2), 4),
        (Reconstruction(), "reconstruction", (1.0, 0.0), 16),
        (Colour(), "colour", (1.0, 0.0), 8),
        (InstanceContrast(), "instance", (1.0, 0.1), 8),
        (Rotation(discriminator_weight=0.5, generator_weight=0.1), "rotation", (0.5, 0.1), 4),
    ],
)
def test_weights_by_step_and_resolution(
    task: SelfSupervisedTask, name: str, weights: tuple[float, float], from_resolution: int
) -> None:
    assert task.name == name
    assert (task.weight("discriminator", 0, 32), task.weight("generator", 0, 32)) == weights
    assert task.weight("discriminator", 0, from_resolution) == weights[0]
    assert task.weight("discriminator", 0, from_resolution // 2) == 0


def test_a_weight_can_follow_the_clock() -> None:
    task = Colour(generator_weight=Linear(0.0, 1.0, kimg=1.0))
    assert [task.weight("generator", seen, 32) for seen in (0, 500, 2000)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            lambda: Rotation(256),
            "Rotation.image_dim is 256, but the discriminator's final_dim is 8: set it to 8",
        ),
        (
            lambda: InstanceContrast(16),
            "InstanceContrast.image_dim is 16, but the discriminator's final_dim is 8: set it to 8",
        ),
        (
            lambda: Colour(128),
            "Colour.map_channels is 128, but the discriminator's map of 8 px is 8: set it to 8",
        ),
        (
            lambda: Colour(8, map_resolution=4),
            "Colour reads a map of 4 px, but the discriminator's are of [8, 16, 32] px: change "
            "map_resolution",
        ),
        (
            lambda: Colour(4, map_resolution=16),
            "Colour.from_resolution 8 must be 16 or more: smaller images have no map of 16 px",
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
        (lambda: InstanceContrast(8, temperature=0.0), "InstanceContrast.temperature 0.0 must be above 0"),
    ],
)
def test_what_does_not_fit_is_told_before_the_first_batch(
    task: Callable[[], SelfSupervisedTask], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_system(self_supervised=[task()])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((256, 16), "ImageTextContrastive.image_dim is 256, but the discriminator's final_dim is 8"),
        ((8, 384), "ImageTextContrastive.text_dim is 384, but the discriminator's text_dim is 16"),
    ],
)
def test_the_contrastive_term_s_sizes_are_checked_too(sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_system(matching=[ImageTextContrastive(*sizes)])


# ------------------------------------------------------------------ in the whole system


def test_all_train_together_and_are_logged() -> None:
    """Augmented, in bfloat16, in parts, through the growth: every loss and note is there and finite."""
    told = Remember()
    system = tiny_system(
        self_supervised=tiny_tasks(), augment=DiffAugment(), accumulate=2, penalties=[R1(0.5)]
    )
    before = weights_of(system.terms)

    train(system, 184, logger=told, precision="bf16-mixed", log_every_n_steps=1)

    notes = {
        "rotation": ["accuracy"],
        "reconstruction": ["whole", "part"],
        "colour": ["of_mean"],
        "instance": ["accuracy"],
    }
    for name, keys in notes.items():
        for step in "dg":
            for column in (f"{step}_{name}", *(f"{step}_{name}_{key}" for key in keys)):
                numbers = told.column(f"train/{column}")
                assert numbers, column
                assert all(math.isfinite(value) for value in numbers.values()), column
    assert min(told.column("train/d_reconstruction")) == 72  # 16 px come after 64 images
    after = weights_of(system.terms)
    assert all(not torch.equal(before[k], after[k]) for k in before if not k.endswith("probability"))


def test_a_task_alone_moves_nothing_where_it_has_no_weight() -> None:
    runs = []
    for tasks in ([], [tiny_task("rotation", generator_weight=0.0)]):
        for task in tasks:
            task.discriminator_weight = 0.0
        system = tiny_system(self_supervised=tasks)
        train(system, 32)
        runs.append(weights_of(system))
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name
