"""The feature extractors against independent implementations."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.metrics.extractors import EfficientNetLite0, EfficientNetLite1, InceptionV3
from imagen_pl.metrics.frechet import FrechetDistance
from tests.helpers.lite_reference import lite_reference

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite0:
    extractor = EfficientNetLite0()
    extractor.load()
    return extractor


def noise(count: int, side: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=draw, dtype=torch.uint8)


# ------------------------------------------------------------------ EfficientNet-Lite0


@pytest.mark.parametrize(
    ("extractor_class", "side"), [(EfficientNetLite0, 224), (EfficientNetLite0, 97), (EfficientNetLite1, 65)]
)
def test_lite_networks_equal_the_packages_networks(
    extractor_class: type[EfficientNetLite0], side: int
) -> None:
    """Weights are assigned to layers by their order: this checks that each is in the right place."""
    extractor = extractor_class()
    extractor.load()
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    network = extractor._network
    assert network is not None
    with torch.no_grad():
        ours = network(x)
        theirs = lite_reference(extractor.name, x).pooled
    assert ours.shape == (2, 1280)
    assert theirs.std() > 0.1
    assert torch.equal(ours, theirs)


def test_lite0_resizes_like_pillow(lite0: EfficientNetLite0) -> None:
    """At 224 px by bilinear interpolation, as (level - 127) / 128."""
    rows, columns = np.mgrid[0:40, 0:40]
    smooth = np.stack([rows * 6, columns * 6, (rows + columns) * 3], -1).astype(np.uint8)
    resized = np.array(Image.fromarray(smooth).resize((224, 224), Image.Resampling.BILINEAR), np.float32)
    seen = []
    network = lite0._network
    assert network is not None
    hook = network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    lite0(torch.from_numpy(smooth).permute(2, 0, 1)[None])
    hook.remove()
    assert seen[0].shape == (1, 3, 224, 224)
    theirs = torch.from_numpy((resized - 127) / 128).permute(2, 0, 1)
    assert (seen[0][0] - theirs).abs().max() <= 1.01 / 128  # Pillow rounds to whole levels


def test_lite1_resizes_to_its_own_size() -> None:
    seen = []
    extractor = EfficientNetLite1()
    extractor.load()
    network = extractor._network
    assert network is not None
    network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    features = extractor(noise(1, 16))
    assert seen[0].shape == (1, 3, 240, 240)
    assert features.shape == (1, extractor.dim) == (1, 1280)
    assert FrechetDistance(extractor).scores == ("fd_efficientnet_lite1", "kd_efficientnet_lite1")


def test_lite0_gives_frozen_float_features(lite0: EfficientNetLite0) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = lite0(noise(2, 16))
    features = lite0(noise(2, 16))
    assert features.shape == (2, lite0.dim) == (2, 1280)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.equal(inside, features)  # mixed precision does not reach it
    network = lite0._network
    assert network is not None
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_many_images_are_processed_in_batches(lite0: EfficientNetLite0) -> None:
    images = noise(1, 8).expand(35, -1, -1, -1)
    features = lite0(images)
    assert features.shape == (35, 1280)
    torch.testing.assert_close(features[34], features[0], atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------ Inception


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the real one is, with random weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    network_class = theirs.FeatureExtractorInceptionV3
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network_class, "load_state_dict", lambda self, state: None)
        network = network_class("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), file)
    return file


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing downloaded before, and no network."""
    import socket

    def unreachable(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)


@pytest.mark.usefixtures("offline")
def test_inception_offline_gives_one_line_error() -> None:
    with pytest.raises(UserError) as output:
        InceptionV3().load()
    assert str(output.value) == (
        "the weights of Inception cannot be downloaded ([Errno -2] Name or service not known): pass a file "
        "with --model.fid_weights FILE"
    )
    problem = FrechetDistance(InceptionV3()).prepare()
    assert problem == str(output.value)


def test_fid_and_kid_equal_reference_implementations(inception_weights: Path, tmp_path: Path) -> None:
    """On the same images, with the same (random) weights: torch-fidelity's features and KID, scipy's root."""
    import torch_fidelity
    from scipy.linalg import sqrtm
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    real, fake = noise(12, 24), noise(12, 24, seed=1) // 2
    for name, images in (("real", real), ("fake", fake)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i}.png")
    metric = FrechetDistance(InceptionV3())
    assert metric.prepare(str(inception_weights)) is None
    for images, is_real in ((real, True), (fake, False)):
        metric.update(images, [""] * 12, real=is_real)
    scores = metric.compute("test_fid_and_kid_equal_reference_implementations")
    assert set(scores) == {"fid", "kid"}
    kid = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "real"),
        input2=str(tmp_path / "fake"),
        cuda=False,
        kid=True,
        kid_subsets=1,
        kid_subset_size=12,
        feature_extractor_weights_path=str(inception_weights),
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )["kernel_inception_distance_mean"]
    assert scores["kid"] == pytest.approx(kid, rel=1e-3)
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(inception_weights))
    a, b = (theirs(images)[0].double().numpy() for images in (real, fake))
    # In the plane that both sets span, since scipy takes minutes for 2,048 dimensions.
    plane = np.linalg.svd(np.concatenate([a, b]), full_matrices=False)[2]
    a, b = a @ plane.T, b @ plane.T
    root = sqrtm(np.cov(a.T) @ np.cov(b.T))
    fid = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real)
    assert scores["fid"] == pytest.approx(fid, rel=1e-3)


def test_missing_weights_file_gives_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.fid_weights .*none\.pth: there is no such file"):
        FrechetDistance(InceptionV3()).prepare(str(tmp_path / "none.pth"))


@pytest.mark.parametrize("spoil", ["cut", "text", "empty"])
def test_damaged_weights_file_gives_one_line_error(
    inception_weights: Path, tmp_path: Path, spoil: str
) -> None:
    file = tmp_path / "spoilt.pth"
    whole = inception_weights.read_bytes()
    file.write_bytes(
        {"cut": whole[: len(whole) // 2], "text": b"<html>not found</html>", "empty": b""}[spoil]
    )
    with pytest.raises(UserError, match=r"spoilt\.pth cannot be read: it is damaged") as output:
        InceptionV3(str(file)).load()
    assert "\n" not in str(output.value)


@pytest.mark.parametrize("content", [{"weight": torch.zeros(3)}, [torch.zeros(3)], torch.zeros(3)])
def test_other_weights_give_one_line_error(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "other.pth"
    torch.save(content, file)
    with pytest.raises(UserError, match=r"other\.pth does not contain the Inception weights of FID"):
        InceptionV3(str(file)).load()


def test_weights_in_the_old_format_are_read(inception_weights: Path, tmp_path: Path) -> None:
    """The file that everyone has is from 2020."""
    file = tmp_path / "old.pth"
    weights = torch.load(inception_weights, weights_only=True)
    torch.save(weights, file, _use_new_zipfile_serialization=False)
    extractor = InceptionV3(str(file))
    assert extractor(noise(1, 16)).shape == (1, 2048)


class _Attack:
    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path(self.trace), "code ran")


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_code_in_a_weights_file_is_not_executed(tmp_path: Path, kind: str) -> None:
    file, trace = tmp_path / "attack.pth", tmp_path / "trace"
    if kind == "pickle":
        file.write_bytes(pickle.dumps(_Attack(str(trace))))
    else:
        torch.save({"weight": _Attack(str(trace))}, file)
    with pytest.raises(UserError, match=r"attack\.pth cannot be read"):
        InceptionV3(str(file)).load()
    assert not trace.exists()
    pickle.loads(pickle.dumps(_Attack(str(trace))))
    assert trace.exists()  # the attack is a real one


def test_cached_statistics_depend_on_the_weights(inception_weights: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied.pth"
    copied.write_bytes(inception_weights.read_bytes())
    assert InceptionV3(str(copied)).fingerprint == InceptionV3(str(inception_weights)).fingerprint
    copied.write_bytes(b"others")
    names = {InceptionV3(w).fingerprint for w in (None, str(copied), str(inception_weights))}
    assert len(names) == 3


# ------------------------------------------------------------------ names


def test_name_fid_is_used_for_inception_only() -> None:
    assert FrechetDistance(InceptionV3()).scores == ("fid", "kid")
    assert FrechetDistance().scores == ("fd_efficientnet_lite0", "kd_efficientnet_lite0")
    assert FrechetDistance(kernel_images=0).scores == ("fd_efficientnet_lite0",)
