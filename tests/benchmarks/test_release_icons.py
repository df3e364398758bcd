"""The script that makes the released model of icons, and what it has made."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from PIL import Image

from benchmarks import release_icons
from imagen_pl import load
from imagen_pl.data.sources.icons import IconSource
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.storage.model_paths import RELEASED

ICONS = RELEASED / "icons"


@pytest.fixture(scope="module")
def asked() -> dict[str, list[str]]:
    return release_icons.prompts()


def test_prompts_are_ten_of_each_kind_and_keep_to_their_splits(asked: dict[str, list[str]]) -> None:
    rows = IconSource().icon_rows()
    splits = {row.full_caption: row.split for row in rows}
    assert {split: len(captions) for split, captions in asked.items()} == {
        "train": 10,
        "composition": 10,
        "test": 10,
    }
    for split, captions in asked.items():
        assert {splits[caption] for caption in captions} == {split}


def test_released_description_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    source = {"class_path": "x", "init_args": {"path": "icons64", "least_pictures": 3, "sets": None}}
    (tmp_path / "config.json").write_text(json.dumps({"data": source, "resolution": 64}))
    release_icons.forget_folder(tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    source["init_args"] = {"path": None, "least_pictures": 1, "sets": None}
    assert found == {"data": source, "resolution": 64}


class Numbered:
    """Draws pictures whose grey level is the seed."""

    drawn: list[tuple[str, int]]

    def draw(self, pairs: Sequence[tuple[str, int]]) -> list[Image.Image]:
        self.drawn = [*pairs]
        return [Image.new("RGB", (64, 64), (seed, seed, seed)) for _, seed in pairs]


def test_sheet_has_a_row_of_eight_seeds_for_each_prompt(asked: dict[str, list[str]]) -> None:
    model = Numbered()
    sheet = release_icons.sample_sheet(cast(TextToImage, model), {"train": ["bell"], "test": ["submarine"]})
    assert model.drawn == [("submarine", seed) for seed in range(8)]
    levels = {sheet.convert("L").getpixel((x, 40)) for x in range(sheet.width)}
    assert set(range(8)) <= levels


def test_release_is_small_and_its_card_is_whole() -> None:
    size = sum(file.stat().st_size for file in ICONS.glob("*.safetensors"))
    assert size < 30e6
    card = (ICONS / "README.md").read_text(encoding="utf-8")
    for title in (
        "Data",
        "Recipe",
        "Scores",
        "How it was made",
        "Samples",
        "Diversity and control",
        "Limits",
    ):
        assert f"\n## {title}\n" in card
    assert "Tabler Icons" in card  # credits
    for score in ("Fréchet distance", "diversity within a prompt", "| diversity |", "named, train"):
        assert score.removeprefix("| ").removesuffix(" |") in card
    assert (ICONS / "samples.png").is_file()
    for text in (card, (ICONS / "config.json").read_text(encoding="utf-8")):
        assert not re.search(r"(^|[\s\"'(])/(home|root|tmp|work|mnt|Users)/", text)


def test_released_model_draws_different_pictures_of_a_caption() -> None:
    model = load("icons", "cpu")
    assert model.resolution == json.loads((ICONS / "config.json").read_text())["resolution"]
    pictures = [picture.convert("L").tobytes() for picture in model.sample("bell", seed=0, num_images=8)]
    apart = [
        sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)
        for i, first in enumerate(pictures)
        for second in pictures[:i]
    ]
    assert min(apart) > 3  # levels of 255
    assert sum(apart) / len(apart) > 15
