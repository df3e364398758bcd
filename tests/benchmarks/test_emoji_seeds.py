"""The seeds of emoji: diversity of a subject's pictures, and whether they show it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import imagen_pl
from benchmarks import emoji_seeds
from benchmarks.protocol import read_pictures


def test_ranks_of_known_features() -> None:
    """The second subject's second picture is nearer to the first subject."""
    real = torch.tensor([[[4.0, 0.0, 0.0], [4.0, 0.1, 0.0]], [[0.0, 4.0, 0.0], [0.1, 4.0, 0.0]]])
    real = torch.cat([real, torch.tensor([[[0.0, 0.0, 4.0], [0.0, 0.1, 4.0]]])])
    drawn = real.clone()
    drawn[1, 1] = torch.tensor([4.0, 0.0, 0.1])
    assert emoji_seeds.ranks(drawn, real) == pytest.approx((5 / 6, 1.0))
    assert emoji_seeds.ranks(real, real, own=False) == (1.0, 1.0)


def test_subjects_have_a_picture_of_each_style() -> None:
    pictures, _ = read_pictures()
    learnt, held_out = (emoji_seeds.subjects_of(pictures, split, 0) for split in emoji_seeds.SPLITS)
    assert len(learnt) == 100
    assert not set(learnt) & set(held_out)
    for name, rows in [*learnt.items(), *held_out.items()]:
        assert [pictures[i].caption for i in rows] == [f"{name}, {pictures[i].style} style" for i in rows]
        assert len({pictures[i].style for i in rows}) == 3


def test_a_model_that_draws_the_real_styles_varies_as_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A style by seed for a subject alone, the right one where the caption names it. Features: 4 x 4 px."""
    monkeypatch.setattr(emoji_seeds, "SUBJECTS", 12)
    pictures, encoded = read_pictures()
    by_caption = {picture.caption: data for picture, data in zip(pictures, encoded, strict=True)}

    def draw(pairs: list[tuple[str, int]], refine: int) -> Iterator[Image.Image]:
        assert refine == 0
        for caption, seed in pairs:
            style = f", {emoji_seeds.STYLES[seed % 3]} style"
            data = by_caption.get(caption) or by_caption[caption + style]
            picture = Image.open(BytesIO(data)).convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            yield Image.alpha_composite(white, picture).convert("RGB")

    monkeypatch.setattr(imagen_pl, "load", lambda *_, **__: SimpleNamespace(draw=draw))
    monkeypatch.setattr(emoji_seeds, "check_teachers", lambda *_: None)

    def extract(_: object, images: torch.Tensor, __: str) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1)

    monkeypatch.setattr(emoji_seeds, "extract", extract)
    monkeypatch.setattr("sys.argv", ["emoji_seeds", "model", "--out", str(tmp_path / "seeds.json")])
    emoji_seeds.main()

    found = {(s["model"], s["split"], s["prompts"]): s for s in read(tmp_path / "seeds.json")}
    for split in emoji_seeds.SPLITS:
        # Eight pictures of three: 21 of 28 pairs differ.
        assert found["model", split, "subject"]["diversity"] == pytest.approx(21 / 28, abs=0.03)
        assert found["model", split, "subject"]["top1"] == 1
        assert found["model", split, "subject and style"]["diversity"] == 0
    assert "| model | train | subject | 0.7" in capsys.readouterr().out


def read(file: Path) -> list[dict[str, Any]]:
    scores: list[dict[str, Any]] = json.loads(file.read_text())["scores"]
    return scores
