"""Loss terms and augmentation on images that are not square, and with alpha."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imagen_pl.imaging.transparency import on_white
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.losses.base import LossInputs
from imagen_pl.losses.colorization import Colorization
from imagen_pl.losses.image_matching import PerceptualMatching, PixelMatching
from imagen_pl.losses.instance_discrimination import InstanceDiscrimination
from imagen_pl.losses.reconstruction import Reconstruction
from imagen_pl.losses.self_supervised import Rotation, SelfSupervisedTask
from imagen_pl.models.augment import DiffAugment, color, cutout, translate
from imagen_pl.models.discriminators.base import ImageFeatures
from imagen_pl.models.image_prior import ImagePrior
from imagen_pl.types import Growth
from tests.helpers.fakes import TinyBackbone, TinyDual, TinyText
from tests.helpers.networks import TEXT_DIM, small_discriminator, small_generator, text_features
from tests.helpers.pretext import Sees
from tests.helpers.tasks import NAMES, tiny_task
from tests.helpers.training import adam

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images() -> Tensor:
    """With alpha, 24 x 16 px."""
    return torch.rand(8, 4, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def task(name: str) -> SelfSupervisedTask:
    if name == "reconstruction":
        return Reconstruction(8, finer_channels=4, image_resolution=16, width=8, image_channels=4)
    return tiny_task(name)


@pytest.mark.parametrize("name", NAMES)
def test_pretext_tasks_learn_from_any_shape_and_alpha(name: str, images: Tensor) -> None:
    discriminator = small_discriminator(image_channels=4, aspect_ratio=1.5)
    term = task(name)
    term.check(discriminator)
    term.check_generator(small_generator(image_channels=4, aspect_ratio=1.5))
    inputs = LossInputs(images, discriminator.extract_features(images), text_features(8), Growth(16))
    losses = term(discriminator, NonSaturating(), inputs)
    losses.mean().backward()
    assert losses.isfinite().all()
    assert all(p.grad is not None for p in term.parameters())
    assert discriminator.last_conv.weight.grad is not None or name in ("reconstruction", "colorization")


def test_reconstruction_needs_the_networks_channels() -> None:
    with pytest.raises(ValueError, match=r"Reconstruction.image_channels is 3, .* is 4: set it to 4"):
        Reconstruction(8, finer_channels=4, image_resolution=16).check(small_discriminator(image_channels=4))


def test_images_that_are_not_square_are_turned_upside_down_or_not(images: Tensor) -> None:
    torch.manual_seed(0)
    seen = Sees(lambda x: ImageFeatures({}, x.flatten(1)[:, :4]))
    Rotation(image_dim=4, share=1.0)(
        seen, NonSaturating(), LossInputs(images, seen.see(images), text_features(8), Growth(16))
    )
    (turned,) = seen.inputs
    straight = [torch.equal(a, b) for a, b in zip(turned, images, strict=True)]
    upside_down = [torch.equal(a, b.rot90(2, (1, 2))) for a, b in zip(turned, images, strict=True)]
    assert sum(straight) == sum(upside_down) == 4


def test_a_grey_image_keeps_its_alpha(images: Tensor) -> None:
    seen = Sees(lambda x: ImageFeatures({8: x[:, :3, ::2, ::2]}, x.flatten(1)[:, :4]))
    inputs = LossInputs(images, seen.see(images), text_features(8), Growth(16))
    Colorization(map_channels=3, share=1.0)(seen, NonSaturating(), inputs)
    (grey,) = seen.inputs
    assert torch.equal(grey[:, 3], images[:, 3])
    assert torch.equal(grey[:, 0], grey[:, 2])
    assert not torch.equal(grey[:, 0], images[:, 0])


def test_matching_and_guidance_take_alpha(images: Tensor) -> None:
    growth, real = Growth(16), images.flip(0)
    features = ImageFeatures({}, images.flatten(1)[:, :4])
    inputs = LossInputs(images, features, text_features(8), growth, [""] * 8, None, real)
    judge = small_discriminator(image_channels=4, aspect_ratio=1.5)
    for term in (PixelMatching(), PerceptualMatching(TinyBackbone())):
        assert term(judge, NonSaturating(), inputs).shape == (8,)
    assert torch.equal(TinyDual().images(images), TinyDual().images(on_white(images)))


def test_a_prior_is_fitted_to_images_as_they_look_on_white(images: Tensor) -> None:
    levels = ((images + 1) * 127.5).round().byte()
    pooled = torch.randn(8, TEXT_DIM, generator=torch.Generator().manual_seed(1))
    fitted = []
    for given in (levels, on_white(levels)):
        prior = ImagePrior(TinyBackbone(), 8, TEXT_DIM, seen_dim=3, thumbnail_dim=3)
        prior.fit([(pooled, given)])
        fitted.append(prior.weights)
    torch.testing.assert_close(*fitted, atol=1e-3, rtol=1e-2)


# ---------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("policy", ["color", "translation", "cutout"])
def test_augmentation_keeps_the_shape_and_reaches_the_far_side(policy: str) -> None:
    augment = DiffAugment([policy])  # type: ignore[list-item]
    augment.image_channels = 4
    torch.manual_seed(0)
    wide = torch.rand(64, 4, 8, 32).requires_grad_()
    out = augment(wide)
    assert out.shape == wide.shape
    assert (out != wide).any(0).any(0)[:, 24:].any()
    out.sum().backward()
    assert wide.grad is not None


def test_colour_changes_leave_alpha_alone(images: Tensor) -> None:
    source = torch.Generator()
    changed = color(images, source.manual_seed(0), channels=4)
    assert torch.equal(changed[:, 3], images[:, 3])
    assert torch.equal(changed[:, :3], color(images[:, :3], source.manual_seed(0)))
    joined = color(torch.cat([images, images], 1), source.manual_seed(0), channels=4)
    torch.testing.assert_close(joined, torch.cat([changed, changed], 1))


def test_the_run_says_how_many_channels_an_image_has() -> None:
    networks = small_generator(image_channels=4), small_discriminator(image_channels=4)
    augment, term = DiffAugment(), InstanceDiscrimination(image_dim=8)
    TextToImageGAN(
        *networks, TinyText(TEXT_DIM), NonSaturating(), adam(), adam(), losses=[term], augment=augment
    )
    assert augment.image_channels == term.augment.image_channels == 4


def test_translation_moves_alpha_with_the_colours(images: Tensor) -> None:
    source = torch.Generator()
    moved = translate(images, source.manual_seed(0))
    for channel in range(4):
        alone = translate(images[:, channel : channel + 1], source.manual_seed(0))
        assert torch.equal(moved[:, channel : channel + 1], alone)


def test_a_hole_is_a_square_of_half_the_shorter_side() -> None:
    torch.manual_seed(0)
    holes = cutout(torch.ones(256, 1, 16, 24)) == 0
    assert holes.sum((1, 2, 3)).max() == 64
    rows, columns = holes.any(3).any(1), holes.any(2).any(1)
    assert rows.any(0).all()
    assert columns.any(0).all()


def test_square_images_are_changed_as_they_always_were() -> None:
    """One draw for both axes: recipes of earlier versions give the same numbers."""
    images, source = torch.rand(5, 3, 16, 16), torch.Generator()
    down, right = torch.randint(0, 5, (2, 5, 1, 1), generator=source.manual_seed(3))
    moved = translate(images, source.manual_seed(3))
    padded = torch.nn.functional.pad(images, [2] * 4, mode="replicate")
    for i in range(5):
        top, left = int(down[i]), int(right[i])
        assert torch.equal(moved[i], padded[i, :, top : top + 16, left : left + 16])
