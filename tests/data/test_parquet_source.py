"""Parquet files, and what the datasets library opens."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Source
from imagen_pl.data.sources.huggingface import HuggingFaceSource
from imagen_pl.data.sources.parquet import ParquetSource
from imagen_pl.errors import UserError
from tests.helpers.image_files import encoded, module


def picture(level: int) -> bytes:
    return encoded(Image.new("RGB", (16, 16), (level, level, level)))


def write(path: Path, **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


def served(source: Source) -> dict[str, dict[int, tuple[str, ...]]]:
    """By split, the captions of each image, which is known by its level."""
    from imagen_pl.data.transforms import decode

    return {
        split: {int(decode(source.image(row), 8)[0, 0, 0]): row.captions for row in rows}
        for split, rows in source.load(SkippedImages()).items()
    }


def test_images_as_bytes_or_structs_and_lists_of_captions_are_read(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.parquet", image=[picture(1), picture(2)], caption=["one", " two "])
    assert served(ParquetSource(str(plain))) == {"train": {1: ("one",), 2: ("two",)}}
    structs = [{"bytes": picture(3), "path": None}, {"bytes": None, "path": "four.png"}]
    (tmp_path / "four.png").write_bytes(picture(4))
    other = write(tmp_path / "structs.parquet", img=structs, words=[["a", "b"], ["c"]])
    source = ParquetSource(str(other), image_column="img", caption_column="words")
    assert served(source) == {"train": {3: ("a", "b"), 4: ("c",)}}
    rows = source.load(SkippedImages())["train"]
    assert pickle.loads(pickle.dumps(source)).image(rows[0]) == picture(3)


def test_splits_by_column_by_file_name_and_by_folder(tmp_path: Path) -> None:
    column = write(
        tmp_path / "a/all.parquet", image=[picture(1), picture(2)], text=["a", "b"], split=["train", "valid"]
    )
    assert served(ParquetSource(str(column))) == {"train": {1: ("a",)}, "validation": {2: ("b",)}}
    write(tmp_path / "b/train-00000-of-00001.parquet", image=[picture(1)], text=["a"])
    write(tmp_path / "b/test-00000-of-00001.parquet", image=[picture(2)], text=["b"])
    write(tmp_path / "b/val/part.parquet", image=[picture(3)], text=["c"])
    assert served(ParquetSource(str(tmp_path / "b"))) == {
        "train": {1: ("a",)},
        "test": {2: ("b",)},
        "validation": {3: ("c",)},
    }


def test_rows_without_image_or_caption_are_skipped(tmp_path: Path) -> None:
    file = write(
        tmp_path / "x.parquet",
        image=[picture(1), None, picture(3), picture(4)],
        caption=["a", "b", None, "d"],
    )
    data = module(ParquetSource(str(file)), val_fraction=0)
    assert data.captions() == ["a", "d"]


def test_group_column_sets_the_groups(tmp_path: Path) -> None:
    file = str(
        write(
            tmp_path / "x.parquet",
            image=[picture(1), picture(2), picture(3)],
            caption=["a", "b", "c"],
            thing=[7, 8, 7],
        )
    )
    rows = ParquetSource(file, group_column="thing").load(SkippedImages())["train"]
    assert [row.group for row in rows] == ["7", "8", "7"]
    assert [row.group for row in ParquetSource(file).load(SkippedImages())["train"]] == ["", "", ""]
    with pytest.raises(UserError, match=r"no column kind: it has .*thing; name .* group_column"):
        ParquetSource(file, group_column="kind").load(SkippedImages())


def test_bad_parquet_gives_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.parquet does not exist"):
        module(ParquetSource(str(tmp_path / "nowhere.parquet"))).setup()
    with pytest.raises(UserError, match=r"holds no \.parquet files"):
        module(ParquetSource(str(tmp_path))).setup()
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match=r"cut.parquet cannot be read as Parquet: "):
        module(ParquetSource(str(tmp_path / "cut.parquet"))).setup()
    file = str(write(tmp_path / "x.parquet", picture=[picture(1)], name=["a"]))
    with pytest.raises(UserError, match=r"no column image: it has picture, name; say .* image_column"):
        module(ParquetSource(file)).setup()
    with pytest.raises(
        UserError, match=r"none of the columns caption, .*; it has picture, name: .*caption_column"
    ):
        module(ParquetSource(file, image_column="picture")).setup()
    with pytest.raises(UserError, match=r"has no column words: it has picture, name"):
        module(ParquetSource(file, image_column="picture", caption_column="words")).setup()
    empty = str(write(tmp_path / "empty.parquet", image=[], caption=[]))
    with pytest.raises(UserError, match=r"empty.parquet holds no rows"):
        module(ParquetSource(empty)).setup()
    only_test = str(write(tmp_path / "t.parquet", image=[picture(1)], caption=["a"], split=["test"]))
    with pytest.raises(UserError, match=r"no images to train on; it has only test \(1\)"):
        module(ParquetSource(only_test)).setup()


@pytest.fixture
def quiet_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.usefixtures("quiet_hub")
def test_data_sets_are_read_from_files_and_from_disk(tmp_path: Path) -> None:
    import datasets

    file = write(tmp_path / "x.parquet", image=[picture(1), picture(2)], text=["a", "b"])
    source = HuggingFaceSource("parquet", data_files=str(file))
    assert served(source) == {"train": {1: ("a",), 2: ("b",)}}
    rows = source.load(SkippedImages())["train"]
    assert pickle.loads(pickle.dumps(source)).image(rows[1]) == picture(2)
    features = datasets.Features({"image": datasets.Image(), "captions": [datasets.Value("string")]})
    table = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (16, 16), (9, 9, 9))], "captions": [["a", "b"]]}, features=features
    )
    datasets.DatasetDict({"train": table, "dev": table}).save_to_disk(str(tmp_path / "saved"))
    assert served(HuggingFaceSource(str(tmp_path / "saved"))) == {
        "train": {9: ("a", "b")},
        "validation": {9: ("a", "b")},
    }


def test_names_of_class_labels_are_captions(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "sea lion"])}
    )
    images = [Image.new("RGB", (16, 16), (level,) * 3) for level in (1, 2, 3)]
    table = datasets.Dataset.from_dict({"img": images, "label": [1, 0, None]}, features=features)
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "saved"))
    source = HuggingFaceSource(str(tmp_path / "saved"), image_column="img", caption_column="label")
    assert served(source) == {"train": {1: ("sea lion",), 2: ("cat",), 3: ()}}


@pytest.mark.usefixtures("quiet_hub")
def test_unreadable_data_sets_give_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"datasets cannot open nobody/nothing: \S+"):
        module(HuggingFaceSource("nobody/nothing")).setup()
    file = write(tmp_path / "x.parquet", picture=[picture(1)], text=["a"])
    with pytest.raises(UserError, match=r"no column image: it has picture, text; say .* image_column"):
        module(HuggingFaceSource("parquet", data_files=str(file))).setup()
