"""FolderSource: both layouts, and errors for bad folders."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.folder import FolderSource
from imagen_pl.errors import UserError
from tests.helpers.image_files import (
    encoded,
    module,
    truncated_jpeg,
    write_images,
    write_metadata,
    write_photos,
)


def load(path: Path, **settings: Any) -> dict[str, dict[str, tuple[str, ...]]]:
    splits = FolderSource(str(path), **settings).load(SkippedImages())
    return {split: {row.name: row.captions for row in rows} for split, rows in splits.items()}


def test_captions_are_read_from_text_files_beside_the_images(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "deep/er/b.png", "c.PNG"])
    (tmp_path / "a.txt").write_text("\ufeffa  red\tcat \r\n\r\nthe same cat\n", encoding="utf-8")
    (tmp_path / "deep/er/b.txt").write_text("a dog")
    (tmp_path / "c.txt").write_text("a bird")
    assert load(tmp_path) == {
        "train": {"a.png": ("a red cat", "the same cat"), "c.PNG": ("a bird",), "deep/er/b.png": ("a dog",)}
    }


def test_names_of_folders_are_captions_and_splits_are_not(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/red_fox/a.png", "train/cat/b.png", "val/cat/c.png"])
    (tmp_path / "train/cat/b.txt").write_text("not read")
    assert load(tmp_path, folder_captions=True) == {
        "train": {"train/cat/b.png": ("cat",), "train/red_fox/a.png": ("red fox",)},
        "validation": {"val/cat/c.png": ("cat",)},
    }


@pytest.mark.parametrize("name", ["a.png", "train/a.png"])
def test_an_image_outside_the_folders_of_classes_gives_one_line_error(name: str, tmp_path: Path) -> None:
    write_images(tmp_path, ["cat/b.png", name])
    with pytest.raises(
        UserError, match=r"a\.png: folder_captions needs each image in a folder of its class, as "
    ):
        load(tmp_path, folder_captions=True)


def test_one_caption_for_all_images(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "deep/b.png"])
    assert load(tmp_path, caption="a  face") == {"train": {"a.png": ("a face",), "deep/b.png": ("a face",)}}
    with pytest.raises(UserError, match="set folder_captions or caption, not both"):
        load(tmp_path, caption="a face", folder_captions=True)


def test_metadata_jsonl_with_splits_by_folder(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/a.png", "val/b.png", "test/c.png"])
    write_metadata(tmp_path / "train", [{"file_name": "a.png", "text": "one\u2028line", "more": 3}])
    write_metadata(tmp_path / "val", [{"file_name": "b.png", "text": ["a b", "the b"]}])
    write_metadata(tmp_path / "test", [{"file_name": "c.png", "prompt": "c"}])
    assert load(tmp_path) == {
        "train": {"train/a.png": ("one line",)},
        "validation": {"val/b.png": ("a b", "the b")},
        "test": {"test/c.png": ("c",)},
    }


def test_metadata_at_the_top_names_files_in_folders(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/a.png", "validation/b.png"])
    (tmp_path / "metadata.csv").write_text(
        'file_name,caption\r\ntrain/a.png,"red, and\nround"\r\nvalidation/b.png,b\r\n'
    )
    assert load(tmp_path) == {
        "train": {"train/a.png": ("red, and round",)},
        "validation": {"validation/b.png": ("b",)},
    }


def test_metadata_and_text_files_can_be_mixed_and_a_column_chosen(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    write_metadata(tmp_path, [{"file_name": "a.png", "text": "no", "title": "yes"}])
    (tmp_path / "b.txt").write_text("b")
    assert load(tmp_path, caption_column="title") == {"train": {"a.png": ("yes",), "b.png": ("b",)}}


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    write_photos(tmp_path, 1)
    write_photos(tmp_path / ".thumbnails", 2)
    (tmp_path / "._000.png").write_bytes(b"not an image")
    assert list(load(tmp_path)["train"]) == ["000.png"]


def test_missing_path_gives_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist: check the path$"):
        module(FolderSource(str(tmp_path / "nowhere"))).setup()


def test_file_instead_of_a_folder_gives_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").touch()
    with pytest.raises(UserError, match=r"is a file, not a folder of images: use .*ParquetSource"):
        module(FolderSource(str(tmp_path / "data.parquet"))).setup()


def test_empty_folder_gives_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no images \(.*\.jpg.*\): check the path"):
        module(FolderSource(str(tmp_path))).setup()


def test_folder_without_captions_gives_one_line_error(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    with pytest.raises(UserError, match=r"none of its 2 images has a caption: write metadata.jsonl there"):
        module(FolderSource(str(tmp_path))).setup()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a"}\n{"file_name": ', r"jsonl:2 is not JSON \("),
        ("metadata.jsonl", "[1, 2]\n", r"jsonl:1 is not a JSON object"),
        ("metadata.jsonl", '{"name": "a.png"}\n', r"jsonl:1 has no file_name: it has name"),
        (
            "metadata.csv",
            "file_name,words\na.png,a\n",
            r"csv:2 has none of the columns caption, .* caption_column",
        ),
        ("metadata.csv", "image,text\na.png,a\n", r"csv:2 has no file_name: it has image, text"),
    ],
)
def test_bad_metadata_names_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    write_images(tmp_path, ["a.png"])
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        module(FolderSource(str(tmp_path))).setup()


def test_text_that_is_not_utf8_gives_one_line_error(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    (tmp_path / "a.txt").write_bytes("cheese\nKäse".encode("latin-1"))
    with pytest.raises(UserError) as error:
        module(FolderSource(str(tmp_path))).setup()
    assert str(error.value) == (
        f"{tmp_path}/a.txt, line 2: is not UTF-8; save the file as UTF-8, for example with "
        f"`iconv -f latin1 -t utf-8 {tmp_path}/a.txt > new.txt` if it is Latin-1"
    )


def test_problems_are_counted_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_photos(tmp_path, 10)
    (tmp_path / "003.png").write_bytes(b"not an image")
    (tmp_path / "004.txt").write_text(" \n")
    (tmp_path / "005.txt").unlink()
    (tmp_path / "006.png").write_bytes(encoded(Image.new("RGB", (1, 1))))
    (tmp_path / "007.png").write_bytes(b"")
    write_metadata(tmp_path, [{"file_name": "gone.png", "text": "gone"}])
    with caplog.at_level(logging.WARNING):
        data = module(FolderSource(str(tmp_path)))
        data.setup()
        assert len(data.captions() or []) == 5
        data.train_dataloader()
        data.val_dataloader()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: skipped 6 of 11 images: 2 unreadable (003.png, 007.png), 1 missing (gone.png), "
        "1 smaller than 4 px (006.png), 1 with an empty caption (004.png), 1 without a caption (005.png)"
    ]


def test_only_bad_images_give_one_line_error(tmp_path: Path) -> None:
    write_photos(tmp_path, 5)
    for image in tmp_path.glob("*.png"):
        image.write_bytes(encoded(Image.new("RGB", (1, 1))))
    data = module(FolderSource(str(tmp_path)))
    data.setup()
    with pytest.raises(UserError, match=r"no image can be used for training: \d smaller than 4 px \(.*\)"):
        data.captions()
    module(FolderSource(str(tmp_path)), min_size=1).captions()


def test_truncated_jpeg_is_replaced_by_the_next_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_photos(tmp_path, 4)
    for i in (1, 2):
        (tmp_path / f"00{i}.png").write_bytes(truncated_jpeg())
    data = module(FolderSource(str(tmp_path)), val_fraction=0)
    loader = data.train_dataloader()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for batch in loader:
                for image, caption in zip(batch.images, batch.captions, strict=True):
                    red, green, blue = image[:, 0, 0].tolist()
                    expected = "red" if red == 255 and green == 0 else "yellow"
                    assert caption == f"a {expected} square {0 if expected == 'red' else 3}"
                    assert blue == 0
    output = [record.getMessage().split(" (")[0] for record in caplog.records]
    assert sorted(output) == [f"00{i}.png cannot be decoded and is skipped" for i in (1, 2)]
    assert int(loader.dataset.broken.sum()) == 2  # type: ignore[attr-defined]


def test_only_truncated_images_give_one_line_error(tmp_path: Path) -> None:
    write_photos(tmp_path, 3)
    for image in tmp_path.glob("*.png"):
        image.write_bytes(truncated_jpeg())
    data = module(FolderSource(str(tmp_path)), val_fraction=0)
    with pytest.raises(UserError, match="none of its 3 images can be decoded"):
        next(iter(data.train_dataloader()))


def test_every_kind_of_png_and_jpeg_is_decoded(tmp_path: Path) -> None:
    grey16 = Image.new("I;16", (16, 16), 65535)
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 255, 255])
    kinds = {
        "cmyk.jpg": encoded(Image.new("CMYK", (16, 16), 0), "JPEG"),
        "palette.png": encoded(palette),
        "deep.png": encoded(grey16),
        "clear.png": encoded(Image.new("RGBA", (16, 16), (0, 0, 0, 0))),
        "grey.png": encoded(Image.new("L", (16, 16), 255)),
        "first.gif": encoded(Image.new("RGB", (16, 16), "white"), "GIF"),
        "small.webp": encoded(Image.new("RGB", (16, 16), "white"), "WEBP"),
        "scan.tif": encoded(Image.new("RGB", (16, 16), "white"), "TIFF"),
    }
    for name, content in kinds.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).with_suffix(".txt").write_text(f"white {name}")
    data = module(FolderSource(str(tmp_path)), val_fraction=0, batch_size=8, epoch_kimg=0.008)
    (batch,) = data.train_dataloader()
    assert sorted(batch.captions) == sorted(f"white {name}" for name in kinds)
    assert batch.images.min() >= 253
