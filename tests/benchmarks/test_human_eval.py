"""The blind test with human raters: what they see, and how answers are counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import imagen_pl
from benchmarks import human_eval
from imagen_pl.errors import UserError

ICONS = Path(imagen_pl.__file__).parent / "data/shipped/icons64"


@pytest.fixture
def sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test for a model that draws red squares."""
    red = Image.new("RGB", (32, 32), "red")

    def draw(pairs: list[tuple[str, int]], refine: int) -> Iterator[Image.Image]:
        assert refine == 3
        assert [seed for _, seed in pairs] == list(range(human_eval.DRAWN))
        return (red for _ in pairs)

    drawer = SimpleNamespace(resolution=32, draw=draw)
    monkeypatch.setattr(imagen_pl, "load", lambda *_, **__: drawer)
    words = ["sheet", "model", "--out", str(tmp_path), "--split", "composition", "--refine", "3"]
    monkeypatch.setattr("sys.argv", ["human_eval.py", *words])
    human_eval.main()
    return tmp_path


@pytest.mark.parametrize("split", ["test", "composition"])
def test_every_subject_is_held_out_and_shown_once(split: str) -> None:
    pictures, _ = human_eval.read_pictures()
    lots = human_eval.draw_lots(pictures, split, 0)
    assert {pictures[row].split for _, row in lots} == {split}
    assert [pictures[row].caption for _, row in lots] == [shown.caption for shown, _ in lots]
    assert len({shown.name for shown, _ in lots}) == len(lots) == human_eval.DRAWN + human_eval.REAL
    for shown, _ in lots:
        assert len(set(shown.choices)) == 10
        assert shown.name in shown.choices
        assert "style" not in shown.name
    # Neither the order of the choices nor that of the pictures reveals the answer.
    assert len({shown.choices.index(shown.name) for shown, _ in lots}) == 10
    sources = [shown.source for shown, _ in lots]
    assert 0 < sources[:40].count("real") < 20
    assert [shown for shown, _ in human_eval.draw_lots(pictures, split, 1)] != [shown for shown, _ in lots]


def test_icons_are_drawn_by_their_subject_alone() -> None:
    pictures, encoded = human_eval.read_icons(ICONS)
    lots = human_eval.draw_lots(pictures, "test", 0)

    assert len(encoded) == len(pictures) > 5_000
    assert len({picture.style for picture in pictures}) == 8
    assert {pictures[row].split for _, row in lots} == {"test"}
    assert len({shown.name for shown, _ in lots}) == human_eval.DRAWN + human_eval.REAL
    assert all(shown.caption == shown.name and "," not in shown.name for shown, _ in lots)


def test_nearest_training_icon_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nearest is for emoji"):
        human_eval.write_sheet("nearest", tmp_path, 0, icons=ICONS)


def test_nearest_training_caption_can_be_a_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest training image is a blue square for every prompt."""
    pictures, encoded = human_eval.read_pictures()
    blue = BytesIO()
    Image.new("RGB", (64, 64), "blue").save(blue, "png")
    nearest = next(row for row, picture in enumerate(pictures) if picture.split == "train")
    encoded[nearest] = blue.getvalue()
    asked: list[int] = []
    monkeypatch.setattr(human_eval, "read_pictures", lambda: (pictures, encoded))

    def nearest_captions(_: object, rows: list[int]) -> list[int]:
        asked.extend(rows)
        return [nearest for _ in rows]

    monkeypatch.setattr(human_eval, "nearest_captions", nearest_captions)
    human_eval.write_sheet(human_eval.NEAREST, tmp_path, seed=0)
    key = human_eval.read_key(tmp_path)
    drawn = [shown.caption for shown in key.values() if shown.source == "model"]
    assert [pictures[row].caption for row in asked] == drawn
    image = Image.open(tmp_path / "reader/sheet.png").convert("RGB")
    squares = sum(count for count, colour in image.getcolors(1 << 24) or [] if colour == (0, 0, 255))
    assert squares == human_eval.DRAWN * 128**2
    with pytest.raises(UserError, match="--refine is for a model"):
        human_eval.write_sheet(human_eval.NEAREST, tmp_path, seed=0, refine=3)


def test_rater_gets_images_and_names_without_the_key(sheet: Path) -> None:
    assert sorted(p.name for p in (sheet / "reader").iterdir()) == ["choices.txt", "sheet.png"]
    written = json.loads((sheet / "key.json").read_text())
    assert {name: written[name] for name in ("model", "split", "seed", "refine")} == {
        "model": "model", "split": "composition", "seed": 0, "refine": 3
    }  # fmt: skip
    key = written["pictures"]
    held = {p.caption for p in human_eval.read_pictures()[0] if p.split == "composition"}
    assert {shown["caption"] for shown in key.values()} <= held
    output = (sheet / "reader/choices.txt").read_text().splitlines()
    assert output == [f"{k}: {', '.join(shown['choices'])}" for k, shown in key.items()]
    image = Image.open(sheet / "reader/sheet.png").convert("RGB")
    red = sum(count for count, colour in image.getcolors(1 << 24) or [] if colour == (255, 0, 0))
    assert red >= human_eval.DRAWN * 96**2
    assert image.width < 1000


def test_correct_choices_are_counted_and_comments_are_shown(
    sheet: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = human_eval.read_key(sheet)
    answers = sheet / "answers.txt"

    def answer(k: str) -> str:
        shown = key[k]
        wrong = next(c for c in shown.choices if c != shown.name)
        return f"{k}: a thing of {k} | {shown.name if shown.source == 'real' else wrong}"

    answers.write_text("\n".join(map(answer, key)))
    monkeypatch.setattr("sys.argv", ["human_eval.py", "score", str(sheet), str(answers)])
    human_eval.main()
    printed = capsys.readouterr().out
    assert "| model | 60 | 0% ± 0% |\n| real | 20 | 100% ± 0% |" in printed
    assert f"| {key['7'].name} | {key['7'].source} | a thing of 7 |" in printed


@pytest.mark.parametrize("line", ["1: no choice", "1: words | no such name", "99: words | dog", "words"])
def test_invalid_answers_raise(sheet: Path, line: str) -> None:
    (sheet / "answers.txt").write_text(line)
    with pytest.raises(UserError, match=r"is not `number: own words \| name`"):
        human_eval.read_answers(sheet / "answers.txt", human_eval.read_key(sheet))
    (sheet / "answers.txt").write_text("")
    with pytest.raises(UserError, match="has no answer to 1, 2, "):
        human_eval.read_answers(sheet / "answers.txt", human_eval.read_key(sheet))
