"""The comparison of upsamplers: its pairs and scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.upsampler import _stacked, drawn_at_both_sizes, score, table
from imagen_pl.data.build_icons import build_icons
from imagen_pl.data.sources.icons import IconSource
from tests.helpers.icon_packages import write_icon_packages

pytest.importorskip("resvg_py")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("upsampler")
    names = [
        first + second
        for first in ("ba", "do", "fi", "gu", "ke", "mo")
        for second in ("la", "ri", "nu", "so")
    ]
    packages = write_icon_packages(folder / "packages", names=names + [f"{name}t" for name in names])
    for size in (32, 64):
        build_icons(folder / str(size), size, packages=packages, jobs=1)
    return folder / "32", folder / "64"


def test_pairs_are_one_vector_of_a_test_subject_at_both_sizes(folders: tuple[Path, Path]) -> None:
    pairs = drawn_at_both_sizes(*folders, coloured=False, number=3, seed=0)
    splits = {row.full_caption: row.split for row in IconSource(str(folders[0])).icon_rows()}
    assert len(pairs) == 3
    for pair in pairs:
        assert splits[pair.caption] == "test"
        assert (pair.small.size, pair.large.size) == ((32, 32), (64, 64))
        shrunk = np.asarray(pair.large.resize((32, 32), Image.Resampling.BOX), np.int16)
        assert np.abs(shrunk - np.asarray(pair.small, np.int16)).mean() < 4
    again = drawn_at_both_sizes(*folders, coloured=False, number=3, seed=0)
    assert [pair.caption for pair in again] == [pair.caption for pair in pairs]


def test_true_pictures_score_best(folders: tuple[Path, Path]) -> None:
    pairs = drawn_at_both_sizes(*folders, coloured=False, number=4, seed=0)
    true = [pair.large for pair in pairs]
    blurred = [pair.small.resize((64, 64), Image.Resampling.BICUBIC) for pair in pairs]
    best, worse = (score("icons", "x", pictures, _stacked(true), 0.5) for pictures in (true, blurred))
    assert best.psnr == 100
    assert best.ssim == pytest.approx(1)
    assert best.distance == pytest.approx(0, abs=1e-4)
    assert worse.psnr < 40
    assert worse.ssim < 0.999
    assert worse.distance > 0.01
    assert worse.frechet > best.frechet
    assert "100.00" in table([best, worse])
