"""The shipped emoji: the rule of their splits, their counts, and how they are built."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pyarrow import parquet

from imagen_pl.cli.main import main
from imagen_pl.data import progress
from imagen_pl.data.build_emoji import (
    SHIPPED,
    SHIPPED_BY_STYLE,
    SHIPPED_IMAGES,
    build_emoji,
    missing_drawings,
    split_of,
    subject_of,
)
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.emoji import EmojiSource
from imagen_pl.errors import UserError
from tests.helpers.image_files import encoded, write_tar


@pytest.fixture(scope="module")
def shipped() -> list[dict[str, Any]]:
    return parquet.read_table(SHIPPED).to_pylist()


def expected_split(hexcode: str, style: str) -> str:
    """The documented rule, implemented a second time."""
    tones = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
    subject = "-".join(p for p in hexcode.lower().split("-") if p != "fe0f" and p not in tones)
    n = int(hashlib.sha256(subject.encode()).hexdigest(), 16)
    if n % 10 < 2:
        return ("test", "validation")[n % 10]
    if n // 10 % 10 == 0 and style == ("fluent", "noto", "twemoji")[n // 100 % 3]:
        return "composition"
    return "train"


def test_number_of_images_by_split_and_style(shipped: list[dict[str, Any]]) -> None:
    assert Counter(row["split"] for row in shipped) == {
        "train": 8587, "validation": 1207, "test": 886, "composition": 264,
    }  # fmt: skip
    assert Counter(row["style"] for row in shipped) == {"fluent": 3372, "noto": 3786, "twemoji": 3786}


def test_splits_follow_the_rule(shipped: list[dict[str, Any]]) -> None:
    assert all(row["split"] == expected_split(row["hexcode"], row["style"]) for row in shipped)


def test_no_subject_is_in_two_splits(shipped: list[dict[str, Any]]) -> None:
    splits: dict[str, set[str]] = {}
    for row in shipped:
        assert row["subject"] == subject_of(row["hexcode"])
        splits.setdefault(row["subject"], set()).add(row["split"].replace("composition", "train"))
    assert all(len(found) == 1 for found in splits.values())
    assert len(splits) == 1913


def test_composition_has_subject_style_pairs_absent_from_training(shipped: list[dict[str, Any]]) -> None:
    trained = {(row["subject"], row["style"]) for row in shipped if row["split"] == "train"}
    kept = {(row["subject"], row["style"]) for row in shipped if row["split"] == "composition"}
    assert kept
    assert not kept & trained


def test_shipped_emoji_have_unique_captions_tags_and_64_px_pictures(shipped: list[dict[str, Any]]) -> None:
    rows = {(row["hexcode"], row["style"]): row for row in shipped}
    cupcake = rows["1f9c1", "fluent"]
    assert cupcake["caption"] == "cupcake, fluent style"
    assert "dessert" in cupcake["tags"]
    wave = rows["1f44b-1f3fe", "noto"]
    assert wave["caption"] == "waving hand: medium-dark skin tone, noto style"
    assert wave["skin_tone"] == "medium-dark"
    assert len({row["caption"] for row in shipped}) == len(shipped)
    for row in shipped[::500]:
        picture = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert (picture.format, picture.size, picture.mode) == ("WEBP", (64, 64), "RGB")
    assert Image.open(io.BytesIO(cupcake["image"]["bytes"])).getpixel((0, 0)) == (255, 255, 255)


def test_licence_notices_are_included() -> None:
    notice = (SHIPPED.parent / "NOTICE.md").read_text()
    assert all(word in notice for word in ("Microsoft", "Apache-2.0", "creativecommons.org/licenses/by/4.0"))
    assert (SHIPPED.parent / "APACHE-2.0.txt").is_file()
    assert SHIPPED.stat().st_size < 14_000_000


def test_datasets_library_opens_the_shipped_file(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset("parquet", data_files=str(SHIPPED), cache_dir=str(tmp_path), split="train")
    assert len(rows) == 10_944
    assert rows[0]["image"].size == (64, 64)
    assert rows[0]["caption"] == "grinning face, fluent style"


def test_source_has_the_splits_and_chosen_styles() -> None:
    splits = EmojiSource().load(SkippedImages())
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 8587, "validation": 1207, "test": 886, "composition": 264,
    }  # fmt: skip
    two = EmojiSource(styles=["fluent", "noto"])
    rows = [row for split in two.load(SkippedImages()).values() for row in split]
    assert len(rows) == 3372 + 3786
    assert not any("twemoji" in row.captions[0] for row in rows)
    groups = Counter(row.group for row in splits["train"])
    assert Counter(groups.values()) == {1: 3677, 6: 764, 20: 8, 26: 6, 5: 2}
    assert two.image(rows[0])[8:12] == b"WEBP"  # type: ignore[index]


def test_tag_captions_are_half_of_the_training_captions_only() -> None:
    plain, tagged = (EmojiSource(tag_captions=tags).load(SkippedImages()) for tags in (False, True))
    for split in ("validation", "test", "composition"):
        assert [row.captions for row in tagged[split]] == [row.captions for row in plain[split]]
    for before, row in zip(plain["train"], tagged["train"], strict=True):
        assert row.captions[: len(row.captions) // 2] == before.captions * (len(row.captions) // 2)
    captions = {row.captions[0]: row.captions for row in tagged["train"]}
    assert captions["cupcake, fluent style"][2:] == (
        "cupcake (sprinkles, treat), fluent style",
        "bakery, sprinkles, treat, fluent style",
    )
    by_tags = captions["waving hand: medium-dark skin tone, noto style"][-1]
    assert by_tags.endswith(", medium-dark skin tone, noto style")
    assert EmojiSource(tag_captions=True).load(SkippedImages())["train"] == tagged["train"]


@pytest.mark.parametrize("tags", [False, True])
def test_subject_captions_are_a_third_of_the_training_captions_only(tags: bool) -> None:
    """ "cupcake" has a picture in each style; the fullest caption names the style."""
    plain = EmojiSource(tag_captions=tags).load(SkippedImages())
    both = EmojiSource(tag_captions=tags, subject_captions=True).load(SkippedImages())
    assert [row.captions for row in both["test"]] == [row.captions for row in plain["test"]]
    for before, row in zip(plain["train"], both["train"], strict=True):
        assert row.captions[: 2 * len(before.captions)] == before.captions * 2
        (name,) = set(row.captions[2 * len(before.captions) :])
        assert before.captions[0].rpartition(", ")[0] == name
        assert row.captions.count(name) == len(before.captions)
    assert sum("cupcake" in row.captions for row in both["train"]) == 3


# ------------------------------------------------------------------ building


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """The six packages with three emoji: a heart, a hand with one skin tone, a keycap."""
    folder = tmp_path / "packages"
    names = [
        {"label": "Red Heart", "hexcode": "2764-FE0F", "tags": ["love"]},
        {"label": "waving hand", "hexcode": "1F44B", "tags": ["bye"],
         "skins": [{"label": "waving hand: dark skin tone", "hexcode": "1F44B-1F3FF"}]},
        {"label": "keycap: #", "hexcode": "0023-FE0F-20E3"},
    ]  # fmt: skip
    write_tar(folder / "emojibase-data-17.0.0.tgz", {"package/en/data.json": json.dumps(names).encode()})
    half = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 256, 128))
    write_tar(
        folder / "lobehub-fluent-emoji-3d-1.1.0.tgz",
        {f"package/assets/{h}.webp": encoded(half, "WEBP", lossless=True) for h in ("2764-fe0f", "23-20e3")},
    )
    square = encoded(Image.new("RGB", (64, 64), (0, 0, 255)))
    for name in ("google", "twitter"):
        files = {f"package/img/{name}/64/{h}.png": square for h in ("2764-fe0f", "1f44b", "1f44b-1f3ff")}
        files[f"package/img/{name}/sheets/64.png"] = b"not wanted"
        write_tar(folder / f"emoji-datasource-{name}-16.0.0.tgz", files)
    rect = '<rect width="36" height="36" fill="#0f0"/>'
    svg = f'<svg viewBox="0 0 36 36" xmlns="http://www.w3.org/2000/svg"{{}}>{rect}</svg>'
    write_tar(
        folder / "discordapp-twemoji-16.0.1.tgz", {"package/dist/svg/2764.svg": svg.format("").encode()}
    )
    sheet = '<svg xmlns="http://www.w3.org/2000/svg"><style/>' + svg.format(' id="2764-FE0F"') + "</svg>"
    write_tar(folder / "svgmoji-noto-3.2.0.tgz", {"package/sprites/all.svg": sheet.encode()})
    return folder


def test_emoji_are_built_from_the_packages(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "emoji.parquet"
    counts = build_emoji(out, 64, packages, progress=False)
    rows = parquet.read_table(out).to_pylist()
    assert counts.total() == len(rows) == 8
    assert [row["caption"] for row in rows[:4]] == [
        "red heart, fluent style",
        "red heart, noto style",
        "red heart, twemoji style",
        "waving hand, noto style",
    ]
    assert {row["hexcode"] for row in rows if row["style"] == "fluent"} == {"2764-fe0f", "0023-fe0f-20e3"}
    dark = next(row for row in rows if row["skin_tone"])
    assert (dark["skin_tone"], dark["subject"], dark["tags"]) == ("dark", "1f44b", ["bye"])
    heart = Image.open(io.BytesIO(rows[0]["image"]["bytes"]))
    assert heart.size == (64, 64)
    assert heart.getpixel((32, 60)) == (255, 255, 255)
    assert [file.name for file in out.parent.iterdir()] == ["emoji.parquet"]


def test_build_above_64_px_draws_svg(packages: Path, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    build_emoji(tmp_path / "emoji.parquet", 128, packages, progress=False)
    rows = parquet.read_table(tmp_path / "emoji.parquet").to_pylist()
    assert [row["style"] for row in rows] == ["fluent", "noto", "twemoji", "fluent"]
    for row in rows[1:3]:
        picture = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert picture.size == (128, 128)
        red, green, blue = picture.getpixel((64, 64))  # type: ignore[misc]
        assert green > 240
        assert max(red, blue) < 16


def test_the_time_left_of_a_long_build_is_measured(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("resvg_py")
    monkeypatch.setattr(progress, "_SHOW_AFTER_S", 0.0)
    words = ["data", "emoji", "--size", "128", "--packages", str(packages)]
    assert main([*words, "--out", str(tmp_path / "emoji.parquet")]) == 0
    errors = capsys.readouterr().err
    assert "from SVG files: this takes minutes; the bar shows the time left\n" in errors
    assert "drawing emoji at 128 px:   0%|" in errors
    assert " emoji/s]" in errors


def test_build_is_refused_with_one_line(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "emoji.parquet"
    for size in (4, 512):
        with pytest.raises(UserError, match=f"--size {size} is not between 8 and 256"):
            build_emoji(out, size, packages)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match="above 64 px are drawn from SVG with resvg-py: pip install resvg-py"):
        build_emoji(out, 128, packages)
    (packages / "emojibase-data-17.0.0.tgz").unlink()
    with pytest.raises(
        UserError, match=r"emojibase-data-17.0.0.tgz is not in .*: fetch it there with `npm pack"
    ):
        build_emoji(out, 64, packages)
    (packages / "emojibase-data-17.0.0.tgz").write_bytes(b"cut off")
    with pytest.raises(UserError, match="is not a whole npm package"):
        build_emoji(out, 64, packages)
    assert not out.exists()


def test_missing_or_failing_npm_gives_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"npm is not installed, .* with --packages"):
        build_emoji(tmp_path / "e.parquet")
    monkeypatch.setattr(shutil, "which", lambda name: "npm")
    failed = subprocess.CompletedProcess([], 1, "", "npm error network\nnpm error ENOTFOUND\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(UserError, match=r"npm could not fetch emojibase-data@17.0.0 \(npm error ENOTFOUND\)"):
        build_emoji(tmp_path / "e.parquet")


def test_npm_fetches_pinned_versions(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def npm(command: list[str], cwd: Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1])
        name, version = command[-1].rsplit("@", 1)
        file = f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
        shutil.copy(packages / file, cwd / file)
        assert command[1:3] == ["pack", "--silent"]
        return subprocess.CompletedProcess(command, 0, file, "")

    monkeypatch.setattr(shutil, "which", lambda name: "npm")
    monkeypatch.setattr(subprocess, "run", npm)
    assert build_emoji(tmp_path / "e.parquet", progress=False).total() == 8
    assert asked == [
        "emojibase-data@17.0.0",
        "@lobehub/fluent-emoji-3d@1.1.0",
        "emoji-datasource-google@16.0.0",
        "emoji-datasource-twitter@16.0.0",
    ]


def test_split_of_equals_the_documented_rule() -> None:
    for number in range(500):
        subject = f"1f{number:03x}"
        for style in ("fluent", "noto", "twemoji"):
            assert split_of(subject, style) == expected_split(subject, style)


def test_missing_drawings_of_large_images_are_reported() -> None:
    counts = Counter(
        {("train", "fluent"): 3372, ("train", "noto"): 3580, ("test", "noto"): 1, ("train", "twemoji"): 3782}
    )
    (line,) = missing_drawings(counts, 256)
    assert line.startswith("209 fewer than the 10,944 that ship (noto 205, twemoji 4): above 64 px")
    assert "@svgmoji/noto@3.2.0" in line
    assert missing_drawings(counts, 64) == []
    assert sum(SHIPPED_BY_STYLE.values()) == SHIPPED_IMAGES == 10_944
