"""The pretext tasks: their losses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen_pl.losses.colorization import Colorization, opponents
from imagen_pl.losses.instance_discrimination import InstanceDiscrimination
from imagen_pl.losses.reconstruction import Decoder, Reconstruction, perceptual, quarter
from imagen_pl.losses.self_supervised import Rotation
from imagen_pl.models.augment import Augment
from imagen_pl.models.discriminators.base import ImageFeatures
from imagen_pl.models.pretrained.backbones import Backbone
from tests.helpers.pretext import SIDE, Sees, ask, learner, noise, pyramid, task_for
from tests.helpers.tasks import NAMES

pytestmark = pytest.mark.usefixtures("one_thread")


def test_rotations_are_four_classes() -> None:
    """The bright corner of an upright image is its top left; a head that uses it is always right."""
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
    turned = discriminator.inputs[-1]
    assert [int((turned[:, 0, y, x] > 0).sum()) for y in (0, -1) for x in (0, -1)] == [2, 2, 2, 2]


def test_single_image_is_rotated_in_all_four_ways() -> None:
    images, ways = torch.full((1, 3, SIDE, SIDE), -1.0), set()
    images[:, :, 0, 0] = 1
    for seed in range(20):
        torch.manual_seed(seed)
        discriminator = Sees(pyramid)
        ask(Rotation(image_dim=4, share=0.1), discriminator, images)
        ways.add(int((discriminator.inputs[-1][0, 0] > 0).flatten().nonzero()))

    assert ways == {0, SIDE - 1, SIDE * (SIDE - 1), SIDE**2 - 1}


class Itself(Decoder):
    """A decoder of a map that is the image already."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, x: Tensor, side: int) -> Tensor:
        assert x.shape[-1] == side
        return x


def test_reconstruction_targets_are_the_half_size_image_and_the_crop() -> None:
    task = Reconstruction(3, 3, image_resolution=SIDE, share=1.0)
    task.whole, task.part = Itself(), Itself()
    images = noise()

    assert not ask(task, Sees(pyramid), images).any()

    brighter = Sees(lambda x: pyramid(x + 0.25))
    torch.testing.assert_close(ask(task, brighter, images), torch.full((8,), 0.25))
    notes = task.take_notes()
    assert [round(float(notes[name]), 5) for name in ("whole", "part")] == [0.25, 0.25]


def test_crops_come_from_the_image() -> None:
    x = noise(4)
    places = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])

    quarters = quarter(x, places)

    upper, lower = slice(0, 8), slice(8, 16)
    for i, (rows, columns) in enumerate([(upper, upper), (upper, lower), (lower, upper), (lower, lower)]):
        assert torch.equal(quarters[i], x[i, :, rows, columns])


def test_decoder_has_an_output_at_every_size() -> None:
    decoder = Decoder(5, width=16, doublings=2)
    for side in (8, 16, 32):
        assert decoder(torch.zeros(2, 5, 8, 8), side).shape == (2, 3, side, side)


class Colours(Backbone):
    """One map: the image itself, scaled; so only the direction of a pixel's colour counts."""

    name, size = "colours", 8
    channels = (3,)

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [5 * images]

    def _read(self) -> nn.Module:
        raise AssertionError("it needs no network")

    _channels = _maps = _normalisation = None  # type: ignore[assignment]


def test_backbone_adds_a_perceptual_distance() -> None:
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
def test_opponent_colours_equal_their_formula(
    rgb: tuple[float, float, float], grey: float, blue_yellow: float, red_cyan: float
) -> None:
    image = torch.tensor(rgb).float()[None, :, None, None].expand(1, 3, 2, 2)

    lightness, colours = opponents(image)

    torch.testing.assert_close(lightness, torch.full((1, 1, 2, 2), float(grey)))
    torch.testing.assert_close(colours[0, :, 0, 0], torch.tensor([blue_yellow, red_cyan]).float())


def test_colours_are_predicted_from_grey_at_each_position() -> None:
    task, discriminator, images = Colorization(map_channels=3, share=1.0), Sees(pyramid), noise()
    with torch.no_grad():
        task.head.weight.zero_()
        assert task.head.bias is not None
        task.head.bias.copy_(torch.tensor([0.1, -0.2]))

    loss = ask(task, discriminator, images)

    grey = discriminator.inputs[-1]
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])
    true = F.avg_pool2d(opponents(images)[1], 2)  # 8 places a side
    gap = (true - torch.tensor([0.1, -0.2])[:, None, None]).abs()
    torch.testing.assert_close(loss, gap.mean((1, 2, 3)))
    unknowing = torch.stack([c - c.mean() for c in true.unbind(1)]).abs().mean()
    torch.testing.assert_close(task.take_notes()["of_mean"], gap.mean() / unknowing)


class Negative(Augment):
    """Turns images into their negatives."""

    def forward(self, images: Tensor, seed: int | None = None) -> Tensor:
        return -images


def test_views_are_matched_by_similarity() -> None:
    """Views with equal features: the loss depends only on the temperature and the batch."""
    images = torch.zeros(4, 3, SIDE, SIDE)
    images[:, 0].flatten(1)[:, :4] = torch.eye(4)
    discriminator = Sees(lambda x: ImageFeatures({}, x[:, 0].flatten(1)[:, :4].abs()))
    task = InstanceDiscrimination(image_dim=4, temperature=0.5, augment=Negative(), share=0.5)
    task.first, task.second = nn.Identity(), nn.Identity()  # type: ignore[assignment]

    loss = ask(task, discriminator, images)

    assert torch.equal(discriminator.inputs[-1], -images[:2])
    by_changed = math.log(1 + 3 * math.exp(-2))  # one of the batch's four
    by_seen = math.log(1 + math.exp(-2))  # one of the two that were changed
    torch.testing.assert_close(loss, torch.full((2,), (by_changed + by_seen) / 2))
    assert float(task.take_notes()["accuracy"]) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("share", "asked"), [(1.0, 8), (0.25, 2), (0.3, 2), (0.01, 1)])
def test_share_selects_part_of_the_images(name: str, share: float, asked: int) -> None:
    discriminator, looks = learner(), []
    look = discriminator.extract_features
    discriminator.extract_features = lambda images, growth: looks.append(len(images)) or look(images, growth)  # type: ignore

    loss = ask(task_for(name, share), discriminator, noise())

    assert looks == [8, asked]
    assert loss.shape == (asked,)
    assert torch.isfinite(loss).all()
