"""`imagen-pl data push`: built icons as a data set for `datasets` and the hub."""

from __future__ import annotations

import json
from collections import Counter
from itertools import cycle
from pathlib import Path

import pyarrow
import pytest
from huggingface_hub import DatasetCard
from pyarrow import parquet

from imagen_pl.cli.main import main
from imagen_pl.data.build_icons import build_icons
from imagen_pl.data.icons_for_hub import prepare_icons
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.huggingface import HuggingFaceSource
from imagen_pl.data.sources.icons import IconSource
from tests.helpers.commands import one_line_error
from tests.helpers.icon_packages import write_icon_packages


@pytest.fixture(scope="module")
def icons_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    build_icons(folder / "icons", 32, packages=write_icon_packages(folder / "packages", more=24), jobs=1)
    # So few subjects are all in the training split: move every second one to another split.
    others = cycle(["train", "validation", "train", "test", "train", "composition"])
    for file in sorted((folder / "icons").glob("*.parquet")):
        table = parquet.read_table(file)
        place = table.schema.get_field_index("split")
        splits = pyarrow.array([next(others) for _ in range(len(table))], pyarrow.string())
        parquet.write_table(table.set_column(place, table.schema.field("split"), splits), file)
    return folder / "icons"


@pytest.fixture
def icons(icons_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return icons_once


def by_split(folder: Path) -> Counter[str]:
    return Counter(
        split for file in folder.glob("*.parquet") for split in parquet.read_table(file)["split"].to_pylist()
    )


def test_the_pushed_data_set_is_read_with_its_splits(
    icons: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    assert main(["data", "push", str(icons), "me/icons32"]) == 0
    output = capsys.readouterr().out
    assert 'uploaded as me/icons32: load_dataset("me/icons32") reads it' in output
    pushed = hub / "datasets/me/icons32"
    found = datasets.load_dataset(str(pushed), cache_dir=str(hub / "cache"))
    expected = by_split(icons)
    assert {name: len(rows) for name, rows in found.items()} == dict(expected)
    assert len(expected) == 4
    row = found["train"][0]
    assert row["image"].size == (32, 32)
    assert len(row["captions"]) > 1
    assert all(set(rows["split"]) == {name} for name, rows in found.items())

    rows = HuggingFaceSource(str(pushed)).load(SkippedImages())
    assert {name: len(some) for name, some in rows.items()} == dict(expected)
    again, own = (IconSource(str(path)).load(SkippedImages()) for path in (pushed, icons))
    assert {k: sorted(r.captions for r in v) for k, v in again.items()} == {
        k: sorted(r.captions for r in v) for k, v in own.items()
    }


def test_the_card_and_the_credits(icons: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "push", str(icons), "me/icons32", "--out", "dataset"]) == 0
    total = by_split(icons).total()
    output = capsys.readouterr().out
    assert f"{total:,} icons: train " in output
    assert "written to dataset; nothing was uploaded" in output
    words = ["data", "push", str(icons), "me/icons32", "--out", "other", "--private"]
    assert "--private has no effect with --out" in one_line_error(words, capsys)
    assert Path("dataset/ATTRIBUTION.md").read_bytes() == (icons / "ATTRIBUTION.md").read_bytes()
    card = DatasetCard.load("dataset/README.md")
    assert (card.data.license, card.data.license_link) == ("other", "ATTRIBUTION.md")
    assert card.data.task_categories == ["text-to-image"]
    assert card.data.size_categories == ["n<1K"]
    paths = {each["split"]: each["path"] for each in card.data.configs[0]["data_files"]}
    assert {split: list(Path("dataset").glob(path)) != [] for split, path in paths.items()} == dict.fromkeys(
        by_split(icons), True
    )
    licences = Counter(
        each for file in icons.glob("*.parquet") for each in parquet.read_table(file)["licence"].to_pylist()
    )
    for licence, count in licences.items():
        assert f"| {licence} | {count:,} |" in card.text
    for column in parquet.read_schema(next(icons.glob("*.parquet"))).names:
        assert f"`{column}`" in card.text
    assert 'load_dataset("me/icons32", split="train")' in card.text


def test_one_licence_is_named_as_the_hub_spells_it(tmp_path: Path) -> None:
    packages = write_icon_packages(tmp_path / "packages", more=24)
    build_icons(tmp_path / "icons", 32, licences=["MIT"], packages=packages, jobs=1)
    prepare_icons(tmp_path / "icons", tmp_path / "out", "me/mit")
    assert DatasetCard.load(tmp_path / "out/README.md").data.license == "mit"


def test_large_splits_are_written_in_several_files(icons: Path) -> None:
    prepare_icons(icons, Path("shards"), "me/icons32", shard_mb=0.001)
    files = sorted(path.name for path in Path("shards/data").glob("train-*"))
    assert len(files) > 1
    assert files[0] == f"train-00000-of-{len(files):05d}.parquet"
    rows = sum(parquet.read_metadata(file).num_rows for file in Path("shards/data").iterdir())
    assert rows == by_split(icons).total()


def test_bad_input_gives_one_line(icons: Path, hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    error = one_line_error(["data", "push", "empty", "me/icons"], capsys)
    assert "empty is not a finished folder of `imagen-pl data icons`, which holds icons.json" in error
    error = one_line_error(["data", "push", str(icons), "icons", "--out", "new"], capsys)
    assert "icons is not a name on the hub: give OWNER/NAME" in error
    Path("taken").mkdir()
    Path("taken/file").write_text(json.dumps({}))
    error = one_line_error(["data", "push", str(icons), "me/icons", "--out", "taken"], capsys)
    assert "taken exists and is not an empty folder: name a new one" in error
