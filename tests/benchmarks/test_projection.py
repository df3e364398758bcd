"""The benchmark of projection, with the shipped model and few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import imagen_pl
from benchmarks import projection
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row
from imagen_pl.data.sources.icons import IconSource
from imagen_pl.inference.projection import psnr

pytestmark = pytest.mark.usefixtures("one_thread")


def test_own_pictures_are_those_of_sample() -> None:
    model = imagen_pl.load("icons", device="cpu")
    captions, images, styles = projection.own_pictures(model)
    assert len(captions) == len(images) == len(styles) == 10
    (same,) = model.sample(captions[3], seed=3, refine=0)
    shown = torch.frombuffer(bytearray(same.tobytes()), dtype=torch.uint8).reshape(64, 64, 3)
    assert psnr(images[3:4], shown.permute(2, 0, 1)[None] / 127.5 - 1) > 45


def test_real_icons_are_of_new_subjects_and_in_pairs() -> None:
    captions, icons, others = projection.real_pictures(64, seed=0)
    learnt = {row.captions[0] for row in _rows("train")}
    assert len(captions) == len(icons) == len(others) == 10
    assert not {caption.split(", ")[0] for caption in captions} & learnt
    assert (icons - others).abs().amax((1, 2, 3)).min() > 0.5
    assert projection.real_pictures(64, seed=1)[0] != captions


def test_table_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(projection, "OWN", projection.OWN[:2])
    projection.run(Path("icons"), tmp_path / "out/scores.json", steps=2, seed=0)

    printed = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in printed[2:]] == [
        *["its own"] * 2,
        *["real, new subjects"] * 2,
        "another real icon",
    ]
    kept = json.loads((tmp_path / "out/scores.json").read_text())
    assert [row["space"] for row in kept["scores"]] == ["w", "w+", "w", "w+"]
    assert kept["scores"][0]["start_style"] < 1
    assert (tmp_path / "out/scores.png").is_file()


def _rows(split: str) -> list[Row]:
    return IconSource().load(SkippedImages())[split]
