"""The icon data set: which icons are taken, how they are drawn, captioned and split; resuming a build."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pyarrow import parquet

from imagen_pl.cli.main import main
from imagen_pl.data import build_icons as module
from imagen_pl.data import icon_names
from imagen_pl.data.build_icons import build_icons
from imagen_pl.data.icon_names import split_of
from imagen_pl.data.icon_sets import content_of
from imagen_pl.data.icon_trade_marks import is_trade_mark, trade_marks
from imagen_pl.data.inspect import guess_source
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.icons import SHIPPED, IconSource
from imagen_pl.data.transforms import decode
from imagen_pl.errors import UserError
from tests.helpers.icon_packages import RING, write_icon_packages
from tests.helpers.image_files import write_tar

pytest.importorskip("resvg_py")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_icon_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def built(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "icons"
    build_icons(out, 32, packages=packages, jobs=1)
    return out


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """All rows by name."""
    tables = [parquet.read_table(file) for file in sorted(folder.glob("*.parquet"))]
    return {row["name"]: row for table in tables for row in table.to_pylist()}


def picture(row: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(row["image"]["bytes"]))


def test_open_sets_are_taken_and_logos_empty_and_broken_icons_are_not(built: Path) -> None:
    assert set(rows_of(built)) == {
        "alpha:disc", "alpha:disc-outline", "alpha:tile", "alpha:tile-copy",
        "beta:disc", "beta:bar", "lines:ring-24",
    }  # fmt: skip


def test_summary_counts_what_was_left_out(packages: Path, tmp_path: Path) -> None:
    found = build_icons(tmp_path / "icons", 32, packages=packages, jobs=1)
    assert found.icons.total() == 7
    assert found.licences == {"MIT": 5, "CC-BY-4.0": 2}
    assert found.subjects == 5
    assert found.left_out == {
        "empty": 1, "broken (ValueError)": 1, "withdrawn by their set": 1, "logos": 1,
        "near-duplicates of a subject in a set": 1, "smaller sizes of an icon": 1,
    }  # fmt: skip
    assert "left out: withdrawn by their set 1, logos 1" in "\n".join(found.lines())


def test_captions_kinds_and_credits(built: Path) -> None:
    rows = rows_of(built)
    assert rows["alpha:disc-outline"]["captions"] == ["disc", "disc, outline", "disc, Alpha Icons, outline"]
    assert rows["beta:bar"]["captions"] == ["bar", "bar, coloured", "bar, Beta Colour, coloured"]
    assert rows["lines:ring-24"]["kind"] == "outline"  # drawn with strokes
    assert (rows["beta:bar"]["licence"], rows["beta:bar"]["author"]) == ("CC-BY-4.0", "Beta Colour's author")
    credits_file = (built / "ATTRIBUTION.md").read_text()
    assert "| Beta Colour (`beta`) | [Beta Colour's author](https://example.org) " in credits_file
    assert "Gamma" not in credits_file


def test_another_name_is_a_caption_unless_it_is_held_out_otherwise(built: Path) -> None:
    record = "record" in rows_of(built)["alpha:disc"]["captions"]
    assert record == (split_of("record", "alpha") == split_of("disc", "alpha"))
    # A turned alias is another picture.
    assert "disc left" not in rows_of(built)["alpha:disc"]["captions"]


def test_icons_are_drawn_in_a_square_in_ink_or_their_own_colours(built: Path) -> None:
    rows = rows_of(built)
    disc, bar = picture(rows["alpha:disc"]), picture(rows["beta:bar"])
    assert disc.size == bar.size == (32, 32)
    assert disc.mode == "RGB"
    assert disc.getpixel((16, 16)) == (0, 0, 0)
    assert disc.getpixel((0, 0)) == (255, 255, 255)
    # 24 x 16 units: centred, 4 units of white above and below, and the bar at 8 to 16 of 16.
    assert bar.getpixel((16, 18)) == (255, 0, 0)
    assert bar.getpixel((16, 3)) == bar.getpixel((16, 12)) == (255, 255, 255)


def test_background_and_ink_can_be_chosen(packages: Path, tmp_path: Path) -> None:
    build_icons(
        tmp_path / "x", 48, sets=["alpha"], background="transparent", ink="#102030", packages=packages, jobs=1
    )
    disc = picture(rows_of(tmp_path / "x")["alpha:disc"])
    assert (disc.mode, disc.size) == ("RGBA", (48, 48))
    assert disc.getpixel((24, 24)) == (0x10, 0x20, 0x30, 255)
    assert disc.getpixel((0, 0))[3] == 0  # type: ignore[index]


def test_a_picture_under_several_names_is_in_one_split(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = {"tile-copy": "test", "tile": "train"}
    monkeypatch.setattr(icon_names, "split_of", lambda key, icon_set: held_out.get(key, "train"))

    build_icons(tmp_path / "x", 32, packages=packages, jobs=1)

    rows = rows_of(tmp_path / "x")
    assert rows["alpha:tile"]["picture"] == rows["alpha:tile-copy"]["picture"]
    assert rows["alpha:tile"]["split"] == rows["alpha:tile-copy"]["split"] == "test"
    assert rows["alpha:disc"]["split"] == "train"


def test_split_of_an_emoji_s_name_is_the_emoji_s(built: Path) -> None:
    assert rows_of(built)["beta:bar"]["split"] == split_of("1f36b", "beta")


def test_interrupted_build_draws_the_missing_sets(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    write_set, most = module._write_set, 2

    def watched(folder: Path, icon_set: Any, *rest: Any) -> None:
        if len(drawn) == most:
            raise KeyboardInterrupt
        drawn.append(icon_set.prefix)
        write_set(folder, icon_set, *rest)

    monkeypatch.setattr(module, "_write_set", watched)
    with pytest.raises(KeyboardInterrupt):
        build_icons(tmp_path / "x", 32, packages=packages, jobs=1)
    assert not list((tmp_path / "x").glob("*.parquet"))
    with pytest.raises(UserError, match="drawn with other settings: delete it"):
        build_icons(tmp_path / "x", 64, packages=packages, jobs=1)

    most = 99
    build_icons(tmp_path / "x", 32, packages=packages, jobs=1)

    assert sorted(drawn) == ["alpha", "beta", "lines"]
    assert len(rows_of(tmp_path / "x")) == 7
    assert not (tmp_path / "x" / "unfinished").exists()


def test_same_pictures_with_any_number_of_processes(built: Path, packages: Path, tmp_path: Path) -> None:
    build_icons(tmp_path / "x", 32, packages=packages, jobs=2)
    assert rows_of(tmp_path / "x") == rows_of(built)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 16}, "--size 16 is not between 32 and 512"),
        (
            {"licences": ["MIT", "WTFPL"]},
            "--licences: no set is under WTFPL; they are under CC-BY-4.0, GPL-3.0, MIT",
        ),
        ({"sets": ["alpha", "gamma"]}, "--sets: gamma is not among the sets under these licences"),
        ({"ink": "inkish"}, "'inkish' is no colour"),
        ({"packages": Path("/nowhere")}, "iconify-json-.*.tgz is not in /nowhere: fetch it"),
    ],
)
def test_wrong_settings_raise(packages: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_icons(tmp_path / "x", **{"size": 32, "packages": packages, "jobs": 1, **settings})


def test_call_with_a_wrong_setting_leaves_the_folder_usable(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--sets: alfa is not among"):
        build_icons(tmp_path / "x", 32, sets=["alfa"], packages=packages, jobs=1)
    assert build_icons(tmp_path / "x", 32, sets=["alpha"], packages=packages, jobs=1).icons.total() == 4


def test_finished_or_foreign_folder_is_not_overwritten(built: Path, packages: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds finished icons already"):
        build_icons(built, 32, packages=packages)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty: name a new folder"):
        build_icons(tmp_path, 32, packages=packages)


def test_logos_inside_other_sets_are_left_out() -> None:
    body = {"body": RING}
    data = {
        "icons": dict.fromkeys(("brand-x", "x-logo", "logotype", "y", "z"), body),
        "categories": {"Brand / Logo": ["y"], "Shapes": ["z"]},
    }
    content = content_of(data, {})
    assert [icon.name for icon in content.icons] == ["logotype", "z"]
    assert content.left_out == {"logos": 3}


def test_names_that_many_sets_of_logos_have_are_trade_marks(tmp_path: Path) -> None:
    names = {
        "a": ["acme", "ring", "chance"], "b": ["acme-icon", "ring"], "c": ["acme", "ring"],
        "d": ["acme-2", "ring"], "e": ["acme", "ring"], "f": ["acme", "ring"], "other": ["acme", "bell"],
    }  # fmt: skip
    files = {
        f"package/json/{prefix}.json": json.dumps({"icons": {name: {} for name in held}}).encode()
        for prefix, held in names.items()
    }
    archive = write_tar(tmp_path / "icons.tgz", files)

    marks = trade_marks(archive, list("abcdef"))

    assert "acme" in marks
    assert not marks & {"ring", "bell", "chance"}, "ordinary words, and names of few sets"
    assert is_trade_mark("acme-drive", marks)
    assert not is_trade_mark("my-acme", marks)
    assert is_trade_mark("git", {"git"})
    assert not is_trade_mark("git-branch", {"git"})


def test_trade_marks_in_other_sets_are_left_out_with_their_other_names() -> None:
    data = {
        "icons": {"acme": {"body": ""}, "acme-drive": {"body": ""}, "bell": {"body": ""}},
        "aliases": {"acme-alarm": {"parent": "bell"}, "alarm": {"parent": "bell"}},
    }
    content = content_of(data, {}, marks={"acme"})
    assert [(icon.name, icon.others) for icon in content.icons] == [("bell", ("alarm",))]
    assert content.left_out == {"logos": 2}


# ------------------------------------------------------------------ the source


def test_source_has_captions_groups_and_credits(built: Path) -> None:
    source = guess_source(str(built))
    assert isinstance(source, IconSource)
    splits = source.load(SkippedImages())
    rows = {row.name: row for split in splits.values() for row in split}
    assert len(rows) == 7
    tile, copy = (row for row in rows.values() if row.captions[0].startswith("tile"))
    assert tile.group == copy.group
    assert {row.captions[0] for row in rows.values()} == {"disc", "tile", "tile copy", "bar", "ring"}
    declared = source.declaration()
    assert declared.captions_may_be_published
    assert declared.licence is not None
    assert declared.licence.startswith("Drawn from the SVG files of @iconify/json@")
    assert "| Alpha Icons (`alpha`) |" in declared.licence
    assert not IconSource("nowhere").declaration().captions_may_be_published


def test_source_takes_chosen_sets_and_subjects_alone(built: Path) -> None:
    source = IconSource(str(built), sets=["Beta Colour"], subject_captions=True)
    rows = [row for split in source.load(SkippedImages()).values() for row in split]
    assert sorted(row.captions for row in rows) == [("bar",), ("disc",)]


def test_source_takes_subjects_with_several_pictures(built: Path) -> None:
    source = IconSource(str(built), least_pictures=2)
    rows = [row for split in source.load(SkippedImages()).values() for row in split]
    assert {row.captions[0] for row in rows} == {"disc"}
    assert len(rows) == 3
    # Those of the chosen sets are counted.
    alone = IconSource(str(built), sets=["Alpha Icons"], least_pictures=3)
    with pytest.raises(UserError, match="holds no rows"):
        alone.load(SkippedImages())


def test_icon_rows_say_what_is_known_of_each_icon(built: Path) -> None:
    rows = IconSource(str(built), least_pictures=2).icon_rows()
    assert [(row.words, row.set, row.full_caption) for row in rows] == [
        ("disc", "Alpha Icons", "disc, Alpha Icons, solid"),
        ("disc", "Alpha Icons", "disc, Alpha Icons, outline"),
        ("disc", "Beta Colour", "disc, Beta Colour, coloured"),
    ]
    assert {row.split for row in rows} <= {"train", "validation", "test", "composition"}
    assert decode(rows[0].image, 32).shape == (3, 32, 32)


def test_subjects_in_few_sets_can_be_left_out(packages: Path, tmp_path: Path) -> None:
    found = build_icons(tmp_path / "icons", size=32, packages=packages, jobs=1, least_sets=2)
    assert found.subjects == 1
    assert found.icons.total() == 3
    assert found.left_out["of subjects in fewer than 2 sets"] == 4
    assert {row["subject"] for row in rows_of(tmp_path / "icons").values()} == {"disc"}


def test_included_icons_follow_the_rule_that_chose_them() -> None:
    """Every subject is drawn by at least 14 sets, each picture is in one split, and the licences allow it."""
    file = SHIPPED / "icons.parquet"
    assert file.stat().st_size < 25e6
    columns = ["name", "subject", "set", "split", "licence", "picture", "coloured"]
    table = parquet.read_table(file, columns=columns)
    rows = table.to_pylist()
    assert len(rows) == 50_406
    sets: dict[str, set[str]] = {}
    splits: dict[str, set[str]] = {}
    for row in rows:
        sets.setdefault(row["subject"], set()).add(row["name"].partition(":")[0])  # the set's prefix
        splits.setdefault(row["picture"], set()).add(row["split"])
    assert min(map(len, sets.values())) >= 14
    assert all(len(found) == 1 for found in splits.values()), "a picture is in one split"
    assert {row["licence"] for row in rows} == {
        "MIT", "Apache-2.0", "ISC", "CC0-1.0", "Unlicense", "CC-BY-4.0", "CC-BY-3.0"
    }  # fmt: skip
    assert sum(row["coloured"] for row in rows) > 4000
    assert not {"facebook", "apple", "google", "linkedin", "chrome"} & sets.keys(), "no trade marks"
    credited = (SHIPPED / "ATTRIBUTION.md").read_text()
    assert all(f"| {name} (`" in credited for name in {row["set"] for row in rows})


def test_source_takes_the_included_icons_by_default() -> None:
    splits = IconSource().load(SkippedImages())
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 37_545, "test": 5_441, "validation": 5_263, "composition": 2_157
    }  # fmt: skip
    assert IconSource().declaration().captions_may_be_published


def test_command_builds_and_reports(
    packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "icons"
    words = ["--size", "32", "--sets", "alpha", "lines", "--packages", str(packages), "--jobs", "1"]
    assert main(["data", "icons", "--out", str(out), *words]) == 0
    printed = capsys.readouterr().out
    assert "5 icons of 4 subjects in 2 sets" in printed
    assert "ATTRIBUTION.md" in printed
    assert json.loads((out / "icons.json").read_text())["icons"] == 5
    assert main(["data", "inspect", str(out), "--out", str(tmp_path / "sheet.png")]) == 0
    printed = capsys.readouterr().out
    assert "subjects   4: 1 with 2 pictures or more, 0 with 8, 0 with 50" in printed
    assert "most pictures: disc 2" in printed
    assert "sets       2: Alpha Icons 4, Lines 1" in printed
    assert "licences   MIT 5" in printed
    assert "words      4: disc 2, tile 2" in printed
