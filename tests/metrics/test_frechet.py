"""The Fréchet and kernel distance of validation: values, cached statistics, and over processes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.emoji import EmojiSource
from imagen_pl.data.transforms import decode
from imagen_pl.errors import UserError
from imagen_pl.metrics.distances import kernel_distance
from imagen_pl.metrics.extractors import EfficientNetLite0
from imagen_pl.metrics.frechet import FrechetDistance
from tests.helpers.metrics import Blocks, frechet_by_scipy, images_of, kernel_by_loop

torch.set_num_threads(1)


class BlocksModule(torch.nn.Module):
    """The same for torchmetrics."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return Blocks()(images)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("IMAGEN_PL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def score(
    metric: FrechetDistance, real: Tensor, fake: Tensor, key: str = "key", batch: int = 16
) -> dict[str, float]:
    """As validation does it."""
    if metric.needs_real(key):
        for part in real.split(batch):
            metric.update(part, [""] * len(part), real=True)
    for part in fake.split(batch):
        metric.update(part, [""] * len(part), real=False)
    found = metric.compute(key)
    metric.reset()
    return found


def test_scores_equal_slow_references() -> None:
    real, fake = images_of(60, seed=0), images_of(50, seed=1, shift=60)
    a, b = (Blocks()(images).double().numpy() for images in (real, fake))
    found = score(FrechetDistance(Blocks()), real, fake)
    assert found == {
        "fd_blocks": pytest.approx(frechet_by_scipy(a, b), rel=1e-4),
        "kd_blocks": pytest.approx(kernel_by_loop(a, b), rel=1e-4),
    }


def test_score_equals_torchmetrics() -> None:
    real, fake = images_of(50, seed=0), images_of(50, seed=1, shift=60)
    frechet = FrechetInceptionDistance(BlocksModule())
    kernel = KernelInceptionDistance(BlocksModule(), subsets=1, subset_size=50)
    for theirs in (frechet, kernel):
        theirs.update(real, real=True)
        theirs.update(fake, real=False)
    found = score(FrechetDistance(Blocks()), real, fake)
    assert found["fd_blocks"] == pytest.approx(float(frechet.compute()), rel=1e-4)
    assert found["kd_blocks"] == pytest.approx(float(kernel.compute()[0]), rel=1e-4)


def test_identical_sets_have_distance_zero() -> None:
    images = images_of(40, seed=0)
    assert score(FrechetDistance(Blocks(), kernel_images=0), images, images)["fd_blocks"] < 1e-6


def test_generated_images_are_reset_between_validations() -> None:
    metric = FrechetDistance(Blocks())
    real = images_of(40, seed=0)
    score(metric, real, images_of(40, seed=2, shift=200))
    again = score(metric, real, images_of(40, seed=1))
    assert again == pytest.approx(score(FrechetDistance(Blocks()), real, images_of(40, seed=1)))


def test_kernel_distance_uses_the_first_kernel_images() -> None:
    real, fake = images_of(40, seed=0), images_of(30, seed=1)
    found = score(FrechetDistance(Blocks(), kernel_images=20), real, fake, batch=8)
    a, b = (Blocks()(images[:20]).double() for images in (real, fake))
    assert found["kd_blocks"] == pytest.approx(kernel_distance(a, b), rel=1e-6)


@pytest.mark.parametrize("kernel_images", [-1, 1])
def test_kernel_images_is_checked(kernel_images: int) -> None:
    with pytest.raises(UserError, match=rf"kernel_images {kernel_images} must be 0, or 2 or more"):
        FrechetDistance(Blocks(), kernel_images=kernel_images)


@pytest.mark.parametrize(("real", "fake"), [(1, 20), (20, 1), (0, 0), (20, 0)])
def test_too_few_images_give_nan_and_a_warning(
    real: int, fake: int, caplog: pytest.LogCaptureFixture
) -> None:
    metric = FrechetDistance(Blocks())
    with caplog.at_level(logging.WARNING):
        found = score(metric, images_of(real, seed=0), images_of(fake, seed=1))
    assert all(np.isnan(value) for value in found.values())
    assert set(found) == {"fd_blocks", "kd_blocks"}
    assert f"{real} real and {fake} generated images are too few to compare" in caplog.text


def test_bias_of_few_images_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    metric, real = FrechetDistance(Blocks()), images_of(20, seed=0)
    with caplog.at_level(logging.WARNING):
        for seed in (1, 2):
            score(metric, real, images_of(30, seed=seed))
            metric.reset()
    (output,) = [record.getMessage() for record in caplog.records]
    assert output.startswith(
        "val/fd_blocks compares 30 pictures with 20 real images: with so few it is too large"
    )


def test_empty_real_statistics_are_not_cached(cache: Path) -> None:
    score(FrechetDistance(Blocks()), images_of(0, seed=0), images_of(20, seed=1))
    assert FrechetDistance(Blocks()).needs_real("key")


def test_distances_rank_blur_and_noise() -> None:
    """On the shipped emoji, 60 against 60 others, by EfficientNet-Lite0."""
    source = EmojiSource(styles=["noto"])
    rows = source.load(SkippedImages())["train"][:120]
    images = torch.stack([decode(source.image(row), 32) for row in rows])
    real, others = images[::2], images[1::2]

    def blur(side: int) -> Tensor:
        small = F.interpolate(others.float(), (side, side), mode="area")
        return F.interpolate(small, (32, 32), mode="bilinear").round().to(torch.uint8)

    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, others.shape, generator=draw, dtype=torch.uint8)
    metric = FrechetDistance(EfficientNetLite0(), kernel_images=60)
    found = [score(metric, real, fake, batch=20) for fake in (others, blur(16), blur(8), noise)]
    for name in metric.scores:
        values = [each[name] for each in found]
        assert values[0] < values[1] < values[2] < values[3]
        assert values[-1] > 2 * values[1] > 2 * values[0]


# ------------------------------------------------------------------ statistics of real images


def test_real_statistics_are_computed_once_and_cached(cache: Path) -> None:
    real, fake = images_of(40, seed=0), images_of(30, seed=1)
    first = FrechetDistance(Blocks())
    found = score(first, real, fake)
    assert isinstance(first.extractor, Blocks)
    assert first.extractor.seen == 70
    assert score(first, real, fake) == pytest.approx(found)
    assert first.extractor.seen == 100
    second = FrechetDistance(Blocks())
    assert score(second, real, fake) == pytest.approx(found)
    assert isinstance(second.extractor, Blocks)
    assert second.extractor.seen == 30
    assert len(list((cache / "real").iterdir())) == 1


def test_cache_depends_on_key_and_settings() -> None:
    real, fake = images_of(40, seed=0), images_of(30, seed=1)
    metric = FrechetDistance(Blocks())
    score(metric, real, fake, key="8 px")
    assert metric.needs_real("16 px")
    other = images_of(40, seed=2, shift=100)
    expected = score(FrechetDistance(Blocks()), other, fake, key="by itself")
    assert score(metric, other, fake, key="16 px") == pytest.approx(expected)
    assert FrechetDistance(Blocks(), kernel_images=20).needs_real("8 px")
    assert not FrechetDistance(Blocks()).needs_real("8 px")
    # With the first key again, the old statistics are used, and nothing of the second key.
    assert score(metric, real, fake, key="8 px") == pytest.approx(
        score(FrechetDistance(Blocks()), real, fake, key="afresh")
    )


@pytest.mark.parametrize("damage", ["cut", "text", "other tensors"])
def test_damaged_cache_file_is_computed_again(
    cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    real, fake = images_of(40, seed=0), images_of(30, seed=1)
    found = score(FrechetDistance(Blocks()), real, fake)
    (file,) = (cache / "real").iterdir()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "text":
        file.write_text("no tensors")
    else:
        torch.save({**torch.load(file), "real_features_cov_sum": torch.zeros(3, 3)}, file)
    metric = FrechetDistance(Blocks())
    with caplog.at_level(logging.WARNING):
        assert metric.needs_real("key")
    assert "is damaged" in caplog.text
    assert score(metric, real, fake) == pytest.approx(found)
    assert not FrechetDistance(Blocks()).needs_real("key")  # it is repaired


def test_unwritable_cache_is_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, fake = images_of(40, seed=0), images_of(30, seed=1)
    found = score(FrechetDistance(Blocks()), real, fake)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("IMAGEN_PL_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert score(FrechetDistance(Blocks()), real, fake) == pytest.approx(found)
    assert "statistics of real images are not cached" in caplog.text


# ------------------------------------------------------------------ two processes

REAL, FAKE = images_of(41, seed=0), images_of(33, seed=1, shift=60)
SHARES = {"even": (20, 16), "uneven": (33, 4), "one has none": (41, 33)}


def _share_of_a_score(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for name, (real, fake) in SHARES.items():
        metric = FrechetDistance(Blocks())
        real_part, fake_part = (
            images[:at] if rank == 0 else images[at:] for images, at in ((REAL, real), (FAKE, fake))
        )
        found[name] = score(metric, real_part, fake_part, key=name)
        found[f"{name}, again"] = score(metric, real_part, fake_part, key=name)
        extractor = Blocks()
        kept = score(FrechetDistance(extractor), real_part, fake_part, key=name)
        found[f"{name}, kept"] = {**kept, "seen": extractor.seen}
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """For any split of the images, and also with real statistics from the disk."""
    multiprocessing.spawn(_share_of_a_score, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    expected = score(FrechetDistance(Blocks()), REAL, FAKE, key="one process")
    for name, (_, fake) in SHARES.items():
        for which in (name, f"{name}, again", f"{name}, kept"):
            for metric, value in expected.items():
                assert first[which][metric] == second[which][metric]
                assert first[which][metric] == pytest.approx(value, rel=1e-6, abs=1e-9), which
        assert first[f"{name}, kept"]["seen"] == fake
        assert second[f"{name}, kept"]["seen"] == len(FAKE) - fake
    # A single process uses what two have cached.
    assert score(FrechetDistance(Blocks()), REAL[:0], FAKE, key="uneven") == pytest.approx(expected)
