"""DiffAugment: what each change does, how often, and that gradients flow through; ADA's rule."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.models.augment import DiffAugment, color, cutout, translate
from imagen_pl.schedules import Linear
from tests.helpers.training import tiny_gan

pytestmark = pytest.mark.usefixtures("one_thread")
CHANGES = pytest.mark.parametrize("change", [color, translate, cutout])


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 3, 8, 8)


def test_probability_zero_is_the_identity(images: Tensor) -> None:
    assert torch.equal(DiffAugment(probability=0.0)(images), images)


def test_probability_one_changes_every_image(images: Tensor) -> None:
    out = DiffAugment(["color"], probability=1.0)(images)

    assert (out != images).flatten(1).any(1).all()
    assert out.shape == images.shape


def test_probability_is_the_share_of_images_that_each_change_touches() -> None:
    images = torch.randn(2000, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)

    touched = (DiffAugment(["color"], probability=0.3)(images) != images).flatten(1).any(1)

    assert 0.26 < float(touched.float().mean()) < 0.34


def test_empty_policy_changes_nothing(images: Tensor) -> None:
    assert torch.equal(DiffAugment([])(images), images)


def test_all_three_changes_are_the_default() -> None:
    assert DiffAugment().policy == ["color", "translation", "cutout"]


@CHANGES
def test_images_are_changed_independently(change: Callable[[Tensor], Tensor]) -> None:
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(64, -1, -1, -1)
    torch.manual_seed(0)

    out = change(image)

    assert len({tuple(row.tolist()) for row in out.flatten(1)}) > 8


@CHANGES
def test_first_and_second_derivatives_exist(change: Callable[[Tensor], Tensor]) -> None:
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return change(x).square()

    assert torch.autograd.gradcheck(seeded, images.requires_grad_())
    assert torch.autograd.gradgradcheck(seeded, images)


@CHANGES
def test_every_visible_pixel_gets_gradients(change: Callable[[Tensor], Tensor], images: Tensor) -> None:
    torch.manual_seed(0)
    (slope,) = torch.autograd.grad((change(images.requires_grad_()) ** 2).sum(), images)

    assert slope.flatten(1).any(1).all()


def test_color_keeps_shapes_and_moves_brightness_saturation_and_contrast_in_their_ranges() -> None:
    torch.manual_seed(0)
    b = 4000
    # Left half dark and reddish, right half light and reddish, so that all three can be measured.
    base = torch.tensor([0.3, 0.0, -0.3]).view(1, 3, 1, 1) + torch.tensor([-0.2, 0.2]).view(1, 1, 1, 2)
    out = color(base.expand(b, 3, 2, 2))

    mean = out.mean((1, 2, 3))
    contrast = (out[..., 1] - out[..., 0]).mean((1, 2)) / 0.4
    colour = (out[:, 0] - out[:, 2]).mean((1, 2)) / 0.6 / contrast
    for value, low, high in ((mean, -0.5, 0.5), (contrast, 0.5, 1.5), (colour, 0.0, 2.0)):
        assert low - 1e-3 <= float(value.min()) < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < float(value.max()) <= high + 1e-3


@pytest.mark.parametrize(("side", "reach"), [(4, 1), (8, 1), (16, 2), (32, 4)])
def test_translation_shifts_by_up_to_an_eighth_and_repeats_the_edge(side: int, reach: int) -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, side, side)
    frame = F.pad(image, [reach] * 4, mode="replicate")[0]
    shifts = {
        (y, x): frame[:, y : y + side, x : x + side]
        for y in range(2 * reach + 1)
        for x in range(2 * reach + 1)
    }

    seen = set()
    for picture in translate(image.expand(40 * (2 * reach + 1), -1, -1, -1)):
        found = [shift for shift, expected in shifts.items() if torch.equal(picture, expected)]
        assert len(found) == 1
        seen.add(found[0])

    for axis in (0, 1):
        assert {shift[axis] for shift in seen} == set(range(2 * reach + 1))


@pytest.mark.parametrize("side", [4, 8, 10, 16])
def test_cutout_blanks_a_square_of_half_the_side_that_the_border_may_cut(side: int) -> None:
    torch.manual_seed(0)
    half = side // 2
    images = torch.ones(600, 3, side, side)

    holes = cutout(images)[:, 0] == 0

    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), heights * widths), "the hole is a rectangle"
    assert int(heights.max()) == int(widths.max()) == half
    assert int(heights.min()) == int(widths.min()) == half // 2 + half % 2
    whole = (heights == half) & (widths == half)
    assert whole.any()
    assert (holes[whole].float().mean((1, 2)) == half**2 / side**2).all()
    assert holes.any(0).all(), "every pixel is blanked at times"


def test_cutout_keeps_the_other_pixels(images: Tensor) -> None:
    torch.manual_seed(1)
    out = cutout(images)

    blank = out == 0
    assert torch.equal(out[~blank], images[~blank])
    assert torch.equal(blank.any(1), blank.all(1)), "all colours together"


def test_same_seed_gives_the_same_changes(images: Tensor) -> None:
    augment = DiffAugment()

    def changed(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return augment(images)

    assert torch.equal(changed(1), changed(1))
    assert not torch.equal(changed(1), changed(2))


@pytest.mark.parametrize(("confidence", "expected"), [(0.9, 0.5 + 64 / 100_000), (0.1, 0.5 - 64 / 100_000)])
def test_adaptive_probability_moves_towards_its_target(confidence: float, expected: float) -> None:
    augment = DiffAugment(probability=0.5, target=0.6, adapt_kimg=100)

    augment.adapt(confidence, batch_size=64)

    assert float(augment.probability) == pytest.approx(expected, abs=1e-7)


def test_adaptive_probability_needs_adapt_kimg_from_0_to_1() -> None:
    augment = DiffAugment(probability=0.0, target=0.6, adapt_kimg=1)

    for step in range(1, 21):
        augment.adapt(1.0, batch_size=100)
        assert float(augment.probability) == pytest.approx(min(step / 10, 1.0), abs=1e-5)
    for _ in range(20):
        augment.adapt(-1.0, batch_size=100)
    assert float(augment.probability) == 0.0


def test_without_a_target_the_probability_stays() -> None:
    augment = DiffAugment(probability=0.5)

    augment.adapt(1.0, batch_size=1000)

    assert float(augment.probability) == 0.5


def test_the_probability_follows_its_schedule_from_0_to_1_at_most() -> None:
    augment = DiffAugment(probability=0.3, schedule=Linear(start=0.0, end=2.0, kimg=1.0))

    found = []
    for images_seen in (0, 250, 500, 900):
        augment.follow_schedule(images_seen)
        found.append(float(augment.probability))
    plain = DiffAugment(probability=0.3)
    plain.follow_schedule(900)

    assert found == [0.0, 0.5, 1.0, 1.0]
    assert float(plain.probability) == pytest.approx(0.3)


def test_a_training_step_sets_the_probability_of_its_schedule() -> None:
    augment = DiffAugment(schedule=Linear(start=0.2, end=1.2, kimg=1.0))
    gan = tiny_gan(augment=augment)
    gan.images_seen = 100

    gan.seed_step()

    assert float(augment.probability) == pytest.approx(0.3)


def test_target_and_schedule_exclude_each_other() -> None:
    with pytest.raises(UserError, match="set target or schedule, not both"):
        DiffAugment(target=0.6, schedule=Linear(start=0.0, end=1.0, kimg=1.0))


def test_the_probability_is_saved() -> None:
    augment, other = DiffAugment(probability=0.0, target=0.6, adapt_kimg=1), DiffAugment()
    augment.adapt(1.0, 250)

    other.load_state_dict(augment.state_dict())

    assert float(other.probability) == pytest.approx(0.25)


def test_bad_settings_raise() -> None:
    with pytest.raises(ValueError, match=r"probability 1.5 is not between 0 and 1"):
        DiffAugment(probability=1.5)
    with pytest.raises(
        ValueError, match=r"policy \['flip'\] is not among \['color', 'translation', 'cutout'\]"
    ):
        # Called without the type checks of the tests, which would raise first.
        inspect.unwrap(DiffAugment.__init__)(DiffAugment.__new__(DiffAugment), ["flip"])
