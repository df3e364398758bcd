"""The generator that enlarges images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.models.degradation import shrink
from imagen_pl.models.generators.upsampler import Upsampler, add_noise
from imagen_pl.types import EncodedBatch, TextFeatures
from tests.helpers.networks import TEXT_DIM, awaken, text_features

pytestmark = pytest.mark.usefixtures("one_thread")


def small_upsampler(**settings: object) -> Upsampler:
    torch.manual_seed(0)
    chosen: dict = {"resolution": 32, "channels": [8, 8, 8], "blocks": 1, "embedding_dim": 8, **settings}
    return Upsampler(text_dim=TEXT_DIM, **chosen)


def shapes(count: int, seed: int = 0) -> Tensor:
    """Black rectangles on white, 32 px, -1 to 1: their edges are sharp at any size."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.ones(count, 3, 32, 32)
    for image in images:
        top, left, height, width = torch.randint(3, 16, (4,), generator=draw).tolist()
        image[:, top : top + height, left : left + width] = -1
    return images


def level(count: int, value: float = 0.0) -> Tensor:
    return torch.full((count,), value)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("size", [(8, 8), (5, 11)])
def test_images_of_any_size_are_enlarged(factor: int, size: tuple[int, int]) -> None:
    network = small_upsampler(factor=factor)
    large = network.upscale(torch.zeros(2, 3, *size), level(2), text_features(2))
    assert large.shape == (2, 3, factor * size[0], factor * size[1])


def test_an_untrained_network_is_bicubic() -> None:
    small = shrink(shapes(2), 4)
    large = small_upsampler().upscale(small, level(2), text_features(2))
    assert torch.equal(large, F.interpolate(small, scale_factor=4, mode="bicubic"))


def test_caption_and_noise_level_matter() -> None:
    network = small_upsampler()
    awaken(network)
    small, text = shrink(shapes(2), 4), text_features(4)
    first = network.upscale(small, level(2), text[:2])
    assert not torch.allclose(first, network.upscale(small, level(2), text[2:]))
    assert not torch.allclose(first, network.upscale(small, level(2, 0.2), text[:2]))
    without = small_upsampler(text_attention=False)
    assert without.text_attention is None


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("channels", [[8], [8, 8], [8, 8, 8]])
def test_no_pixel_further_than_the_halo_matters(channels: list[int], blocks: int) -> None:
    network = small_upsampler(channels=channels, blocks=blocks).double()
    awaken(network)
    text = text_features(1, dtype=torch.float64)
    side = 2 * network.halo + 17
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).double()
    changed = image.clone()
    middle = side // 2
    changed[:, :, middle, middle] += 1

    seen = network.upscale(image, level(1).double(), text) != network.upscale(
        changed, level(1).double(), text
    )

    places = seen.any(1)[0].nonzero() // network.factor
    reach = (places - middle).abs().max().item()
    assert 0 < reach <= network.halo
    assert network.halo % network.alignment == 0
    assert reach > network.halo - 2 * network.alignment - 4  # the halo is no larger than needed


def test_noise_of_level_zero_leaves_the_image_as_it_is() -> None:
    images = shapes(2)
    assert torch.equal(add_noise(images, level(2)), images)
    torch.manual_seed(0)
    noisy = add_noise(images, torch.tensor([0.0, 0.5]))
    assert torch.equal(noisy[0], images[0])
    assert (noisy[1] - images[1]).std().item() == pytest.approx(0.5, rel=0.05)


def test_each_image_has_its_own_noise_level() -> None:
    torch.manual_seed(0)
    network = small_upsampler(noise=0.4, clean_share=0.5)
    small, levels = network.small_images(shapes(400))
    assert small.shape == (400, 3, 8, 8)
    assert (levels == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    drawn = levels[levels > 0]
    assert 0.3 < drawn.max().item() <= 0.4
    assert len(drawn.unique()) == len(drawn)
    assert not network.eval().small_images(shapes(3))[1].any()


def test_a_batch_is_made_small_and_enlarged_again() -> None:
    network = small_upsampler().eval()
    batch = EncodedBatch(shapes(2), text_features(2), ["", ""])
    large = network.for_batch(torch.zeros(2, 1), batch)
    assert torch.equal(large, network.upscale(shrink(batch.images, 4), level(2), batch.text))
    rows = network.rows_to_show(torch.zeros(2, 1), batch)
    assert list(rows) == ["given", "enlarged", "true"]
    assert all(row.shape == (2, 3, 32, 32) for row in rows.values())
    assert torch.equal(rows["enlarged"], large)


def test_every_parameter_gets_a_gradient() -> None:
    network = small_upsampler()
    awaken(network)
    batch = EncodedBatch(shapes(4), text_features(4), [""] * 4)
    network.for_batch(torch.zeros(4, 1), batch).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_learns_edges_that_bicubic_blurs() -> None:
    """On shapes that it has not seen, after seconds of training by the pixels alone."""
    torch.manual_seed(0)
    network = small_upsampler(channels=[16, 16], noise=0.0)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    empty = TextFeatures(torch.zeros(16, 1, TEXT_DIM), torch.ones(16, 1).bool(), torch.zeros(16, TEXT_DIM))
    for step in range(150):
        images = shapes(16, seed=step)
        loss = (network.for_batch(torch.zeros(16, 1), EncodedBatch(images, empty, [""] * 16)) - images).abs()
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    unseen = shapes(16, seed=1000)
    small = shrink(unseen, 4)

    with torch.no_grad():
        error = (network.eval().upscale(small, level(16), empty) - unseen).square().mean()

    bicubic = (F.interpolate(small, scale_factor=4, mode="bicubic") - unseen).square().mean()
    assert error < 0.6 * bicubic


def test_captions_alone_are_refused() -> None:
    with pytest.raises(UserError, match="imagen-pl upscale"):
        small_upsampler()(torch.zeros(1, 1), text_features(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 3}, "factor 3 must be 2, 4 or 8"),
        ({"resolution": 36}, "resolution 36 must be a multiple of 16"),
        ({"channels": []}, "needs one or more channels"),
        ({"noise": -0.1}, "noise -0.1"),
        ({"clean_share": 2.0}, "clean_share 2.0"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_upsampler(**settings)
