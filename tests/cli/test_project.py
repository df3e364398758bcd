"""`imagen-pl project`, and `imagen-pl edit` of a picture."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from imagen_pl import load
from imagen_pl.cli.main import main
from imagen_pl.inference.pipeline import TextToImage
from tests.helpers.commands import one_line_error
from tests.helpers.runs import Tiny

HEART, CAT = "a red heart", "a cat, fluent style"


@pytest.fixture
def own(trained: Tiny) -> Path:
    """A picture that the model has drawn, enlarged."""
    (picture,) = load(trained.run).sample(HEART, seed=3, refine=0)
    picture.resize((64, 64), Image.Resampling.NEAREST).save("own.png")
    return Path("own.png")


def cell(sheet: Image.Image, place: int) -> np.ndarray:
    left = 6 + 102 * place
    return np.asarray(sheet.convert("RGB").crop((left, 6, left + 96, 102)).resize((8, 8)), dtype=np.int16)


def test_project_finds_own_pictures_again(
    trained: Tiny, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["project", str(trained.run), str(own), "--prompt", HEART, "--steps", "150"]
    assert main([*words, "--film", "search.gif"]) == 0
    output = capsys.readouterr().out

    found = re.search(r"own.png: ([\d.]+) dB, perceptual distance ([\d.]+)\n", output)
    assert found is not None
    assert float(found[1]) > 28
    assert "search.gif: 76 frames of the search" in output
    assert "projected.png: each picture, then what the model draws" in output
    with Image.open("projected.png") as sheet:
        assert sheet.info["prompt"] == HEART
        assert sheet.info["space"] == "w+"
        assert np.abs(cell(sheet, 0) - cell(sheet, 1)).mean() < 12
    with Image.open("search.gif") as film:
        frames = [np.asarray(f.convert("RGB"), dtype=np.int16) for f in ImageSequence.Iterator(film)]
    assert len(frames) > 50  # Pillow joins equal ones
    half = frames[0].shape[1] // 2
    off = [np.abs(f[:, :half] - f[:, -half:]).mean() for f in (frames[0], frames[-1])]
    assert off[1] < off[0] / 2


def test_several_pictures_and_one_style_for_all_resolutions(
    trained: Tiny, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["project", str(trained.run), str(own), str(own), "--prompt", HEART, "--space", "w"]
    assert main([*words, "--steps", "3", "--out", "two.webp"]) == 0
    assert capsys.readouterr().out.count("own.png: ") == 2
    with Image.open("two.webp") as sheet:
        assert json.loads(sheet.getexif()[270])["space"] == "w"


def test_many_pictures_are_projected_in_parts(
    trained: Tiny, own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["project", str(trained.run), *[str(own)] * 3, "--prompt", HEART, "--steps", "3"]
    assert main(words) == 0
    together = capsys.readouterr().out
    monkeypatch.setattr(TextToImage, "at_once", 2)
    assert main(words) == 0
    assert capsys.readouterr().out == together
    assert main([*words, "--film", "film.gif"]) == 2
    assert "--film shows 2 pictures at most" in capsys.readouterr().err


def test_edit_of_a_picture_shows_it_and_each_new_prompt(
    trained: Tiny, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["edit", str(trained.run), HEART, "--to", CAT, HEART, "--image", str(own), "--steps", "60"]
    assert main(words) == 0
    assert "edit.png: own.png, what the model draws (" in capsys.readouterr().out
    with Image.open("edit.png") as sheet:
        assert sheet.width == 6 + 4 * 102
        assert sheet.info["image"] == "own.png"
        assert sheet.info["to"] == f"{CAT}\n{HEART}"
        drawn, cat, heart = (cell(sheet, k) for k in (1, 2, 3))
    assert np.abs(drawn - heart).max() <= 2  # the same words
    assert np.abs(drawn - cat).max() > 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.png", "--prompt", HEART], "missing.png: there is no such file"),
        (["own.png", "--prompt", " "], "the prompt is empty"),
        (["own.png", "--prompt", HEART, "--steps", "0"], "--steps 0 must be 1 to 5000"),
        (["own.png", "--prompt", HEART, "--out", "a.gif"], "--out a.gif must be a .png, .webp or .jpg file"),
        (["own.png", "--prompt", HEART, "--film", "a.avi"], "a.avi must end in .gif, .webp or .mp4"),
        (["broken.png", "--prompt", HEART], "broken.png cannot be read as a picture"),
        (
            ["own.png", "--prompt", HEART, "--out", "./own.png"],
            "own.png is a picture to project: name another",
        ),
        (["own.png", "--prompt", HEART, "--seed", str(2**64)], "is out of range: it must be less than 2^64"),
    ],
)
@pytest.mark.usefixtures("own")
def test_bad_input_gives_one_line_error(
    words: list[str], said: str, trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.png").write_bytes(b"no picture")
    assert said in one_line_error(["project", str(trained.run), *words], capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image", "missing.png"], "missing.png: there is no such file"),
        (["--image", "own.png", "--refine", "20"], "--refine does not go with --image: leave it out"),
        (["--image", "own.png", "--num_images", "2"], "--num_images does not go with --image: leave it out"),
        (["--steps", "20"], "--steps goes with --image: leave it out"),
        (["--image", "own.png", "--out", "own.png"], "own.png is a picture to project: name another file"),
    ],
)
@pytest.mark.usefixtures("own")
def test_bad_input_of_edit_gives_one_line_error(
    words: list[str], said: str, trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in one_line_error(["edit", str(trained.run), HEART, "--to", CAT, *words], capsys)
