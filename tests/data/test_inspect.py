"""`imagen-pl data`: the reports and the contact sheet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from imagen_pl.cli.data import run as main
from imagen_pl.data.build_emoji import SHIPPED
from imagen_pl.data.inspect import common_shape, guess_source, inspect_source
from imagen_pl.data.sources.folder import FolderSource
from imagen_pl.data.splits import check_rows, held_out, smallest_side
from imagen_pl.errors import UserError
from tests.helpers.image_files import encoded, truncated_jpeg, write_photos, write_tar


def test_report_has_counts_sizes_captions_and_problems_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "photos", 7)
    Image.new("RGB", (72, 48), "red").save(photos / "wide.png")
    (photos / "wide.txt").write_text("a wide picture " + "word " * 60 + "\na second caption")
    (photos / "003.png").write_bytes(truncated_jpeg())
    (photos / "004.txt").write_text("")
    assert main(["inspect", str(photos), "--out", str(tmp_path / "new/sheet.png")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{photos}: read by imagen_pl.data.sources.folder.FolderSource",
        "images     8: train 8",
        "sizes      width 32, 32, 72, height 32, 32, 48 px (smallest, median, largest); 86% square",
        "           half have a shorter side of 32 px or more",
        "           1 lose over a quarter to the centre crop: --data.fit pad keeps them whole",
        "captions   8, 8 of them different; up to 2 an image",
        "           3, 4, 63 words (smallest, median, largest)",
        "           1 have over 50 words: text encoders may cut them off",
        "splits     no validation: data.val_fraction of the training images will be held out",
        "problems   1 unreadable (003.png), 1 with an empty caption (004.png)",
        "           `fit` skips these; at --resolution 64 it skips images with a side below 32 px "
        "(data.min_size)",
        f"pictures   {tmp_path}/new/sheet.png",
    ]
    sheet = Image.open(tmp_path / "new/sheet.png").convert("RGB")
    assert sheet.width > 6 * 128
    colours = {colour for _, colour in sheet.getcolors(1 << 20) or []}
    assert {(255, 0, 0), (0, 0, 255)} <= colours


def test_images_that_fit_skips_as_too_small_are_reported(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 4)  # of 32 px
    Image.new("RGB", (200, 31), "red").save(photos / "flat.png")
    (photos / "flat.txt").write_text("a flat picture")
    loaded = held_out(FolderSource(str(photos)), "validation", 0)
    for resolution, skipped in ((32, 0), (64, 1)):
        report = inspect_source(str(photos), resolution=resolution)
        trained = check_rows(loaded, smallest_side(resolution)).train
        assert report.problems.total() == 5 - len(trained) == skipped
    assert "1 smaller than 32 px (flat.png)" in "\n".join(report.lines())


def test_report_of_the_emoji(tmp_path: Path) -> None:
    report = inspect_source("emoji", tmp_path / "sheet.png", limit=50)
    assert report.splits == {"train": 8587, "validation": 1207, "test": 886, "composition": 264}
    assert report.distinct_captions == 10_944
    assert set(report.widths) == set(report.heights) == {64}
    assert 50 <= report.decoded < 200
    assert report.problems.total() == 0
    assert any("were fully decoded" in line for line in report.lines())
    assert report.sheet is not None
    assert report.sheet.is_file()


def test_source_is_guessed_from_the_path(tmp_path: Path) -> None:
    def kind(path: Path | str) -> str:
        return type(guess_source(str(path))).__name__

    write_photos(tmp_path / "photos", 1)
    write_tar(tmp_path / "shards/0.tar", {"a.txt": b"a"})
    (tmp_path / "coco/annotations").mkdir(parents=True)
    captions = tmp_path / "coco/annotations/captions_val2017.json"
    captions.write_text("{}")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/train-0.parquet").write_bytes(SHIPPED.read_bytes()[:10])
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/dataset_dict.json").write_text("{}")
    assert kind("emoji") == "EmojiSource"
    assert kind("icons") == "IconSource"
    assert kind(SHIPPED) == kind(tmp_path / "tables") == "ParquetSource"
    assert kind(tmp_path / "photos") == "FolderSource"
    assert kind(tmp_path / "shards") == kind(tmp_path / "shards/{0..9}.tar") == "WebDatasetSource"
    assert kind("https://example.org/{00..99}.tar") == "WebDatasetSource"
    assert kind(captions) == kind(tmp_path / "coco") == "CocoSource"
    assert kind("hf:somebody/flowers") == kind(tmp_path / "saved") == "HuggingFaceSource"
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        guess_source(str(tmp_path / "nowhere"))


def test_shards_are_read_up_to_the_limit(tmp_path: Path) -> None:
    for shard in range(2):
        files: dict[str, bytes] = {}
        for i in range(10):
            files |= {f"{i}.png": encoded(Image.new("RGB", (8, 8))), f"{i}.txt": f"{shard} {i}".encode()}
        write_tar(tmp_path / f"{shard}.tar", files)
    report = inspect_source(str(tmp_path), limit=15)
    assert report.splits == {"train": 15}
    assert report.truncated
    assert any("as far as it was read" in line for line in report.lines())
    assert not inspect_source(str(tmp_path), limit=20).truncated


def test_report_of_coco(tmp_path: Path) -> None:
    write_photos(tmp_path, 2)
    content = {
        "images": [{"id": i, "file_name": f"00{i}.png"} for i in range(2)],
        "annotations": [{"image_id": i, "caption": f"caption {n}"} for i in range(2) for n in range(5)],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    report = inspect_source(str(tmp_path / "captions.json"))
    assert (len(report.caption_words), report.distinct_captions) == (10, 5)
    assert any(line.endswith("up to 5 an image") for line in report.lines())


def test_bad_input_of_inspect_gives_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="does not exist"):
        main(["inspect", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit):
        main(["inspect", "emoji", "--limit", "0"])
    assert "0 is not 1 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
    with pytest.raises(SystemExit):
        main(["emoji"])
    with pytest.raises(UserError, match="--size 1000 is not between 8 and 256"):
        main(["emoji", "--out", str(tmp_path / "x.parquet"), "--size", "1000"])


def test_help_names_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, words in (
        ("inspect", ["--out", "--limit", "emoji"]),
        ("emoji", ["--size", "--packages", "256 px"]),
        (
            "shards",
            ["--size_mb", "--size_images", "--shrink", "--seed", "examples:\n  imagen-pl data shards"],
        ),
        ("captions", ["--captioner", "--num_beams", "--overwrite", "examples:\n  imagen-pl data captions"]),
    ):
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert all(word in text for word in words)


def test_a_shape_that_most_images_have_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where the contact sheet goes
    photos = write_photos(tmp_path / "photos", 3)
    for i in range(5):
        Image.new("RGB", (96 + i, 64), "red").save(photos / f"wide{i}.png")
        (photos / f"wide{i}.txt").write_text("a wide picture")
    assert main(["inspect", str(photos)]) == 0
    assert (
        "           most are about 1.5 times as wide as high: --data.aspect_ratio 1.5 trains on that shape\n"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("sizes", "ratio"),
    [
        ([(64, 64)] * 3, 1.0),
        ([(1600, 900)] * 3 + [(8, 8)] * 2, 1.75),
        ([(30, 40)] * 3, 0.75),
        ([(200, 100), (150, 100), (100, 100), (100, 150), (100, 200)], 1.0),
        ([(1, 400)] * 2, 1.0),
    ],
)
def test_a_common_shape_is_a_multiple_of_a_quarter(sizes: list[tuple[int, int]], ratio: float) -> None:
    assert common_shape(sizes) == ratio
