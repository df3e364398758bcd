"""The functions behind the page, and the page served to a client."""

from __future__ import annotations

import io
import json
import math
import os
import re
import struct
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagen_pl import load
from imagen_pl.cli.demo import past_proxies
from imagen_pl.cli.main import main
from imagen_pl.demo.checks import MAX_PROMPT, check_upload
from imagen_pl.demo.facts import Knowledge
from imagen_pl.demo.studio import Studio
from imagen_pl.demo.uploads import Uploads
from imagen_pl.errors import UserError
from imagen_pl.imaging.svg import trace
from imagen_pl.inference.variations import variations
from imagen_pl.storage.model_paths import RELEASED
from tests.helpers.image_files import noise
from tests.helpers.upscalers import random_upscaler


@pytest.fixture
def studio(trained_once: Path, tmp_path: Path) -> Studio:
    return Studio(load(trained_once / "runs/tiny", device="cpu"), "runs/tiny", None, tmp_path)


def test_images_are_files_with_metadata(studio: Studio) -> None:
    drawn = studio.draw("  a red\nheart ", 7, 0.5, 1.5, 3)
    assert [label for _, label in drawn] == ["seed 7", "seed 8", "seed 9"]
    expected = studio.model.sample("a red heart", seed=7, num_images=3, truncation=0.5, guidance=1.5)
    for (file, _), picture, seed in zip(drawn, expected, (7, 8, 9), strict=True):
        with Image.open(file) as found:
            assert found.size == (256, 256)
            assert found.info["prompt"] == "a red heart"
            assert found.info["seed"] == str(seed)
            assert (found.info["truncation"], found.info["guidance"]) == ("0.5", "1.5")
            assert found.resize((8, 8), Image.Resampling.NEAREST).tobytes() == picture.tobytes()


def test_images_are_enlarged_and_traced_at_that_size(trained_once: Path, tmp_path: Path) -> None:
    upscaler = random_upscaler()
    model = load(trained_once / "runs/tiny", device="cpu")
    studio = Studio(model, "runs/tiny", None, tmp_path, upscaler)

    drawn = studio.draw("a red heart", 7, 1, 1, 2)

    assert studio.size == (32, 32)
    for (file, _), picture in zip(drawn, model.sample("a red heart", 7, 2), strict=True):
        expected = upscaler.upscale(picture, "a red heart")
        with Image.open(file) as found:
            assert found.size == (256, 256)
            assert found.resize((32, 32), Image.Resampling.NEAREST).tobytes() == expected.tobytes()
        (traced,) = studio.vector([(file, "")])
        assert len(Path(traced).read_text().splitlines()) == len(trace(expected).splitlines()) + 1


def test_examples_are_captions_of_the_model_if_they_may_be_published(studio: Studio) -> None:
    icons = {"class_path": "imagen_pl.data.sources.icons.IconSource", "init_args": {}}
    captions = ["bell", "x" * (MAX_PROMPT + 1), "bell, outline", "camera", "", "star, Tabler Icons, outline"]
    of_a_folder = Knowledge.of(studio.model)

    studio.model.description |= {"captions": captions, "data": icons}

    published = Knowledge.of(studio.model)
    assert published.captions == ("bell", "bell, outline", "camera", "star, Tabler Icons, outline")
    assert of_a_folder == Knowledge()
    assert (of_a_folder.examples(), of_a_folder.suggestions("be"), of_a_folder.line()) == ([], [], "")
    only_captions = Knowledge(published.captions)
    assert only_captions.examples() == ["bell", "bell, outline", "camera"]
    assert only_captions.suggestions("be") == ["bell", "bell, outline"]


@pytest.mark.parametrize("model", ["icons", "emoji"])
def test_what_a_model_knows_is_read_from_its_data(model: str) -> None:
    description = json.loads((RELEASED / model / "config.json").read_text())

    known = Knowledge.of(SimpleNamespace(description=description))  # type: ignore[arg-type]

    assert known.vocabulary is not None
    number, last = len(known.vocabulary.subjects), len(known.vocabulary.attributes) - 6
    if model == "icons":
        assert known.line() == (
            f"It knows {number} subjects of icons; style words: outline, filled, coloured, regular, fill, "
            f"line and {last} more."
        )
        assert known.suggestions("bel")[0] == "bell"
        assert known.suggestions("bell, outl")[0] == "bell, outline"
        assert known.edit() == (f"{known.examples()[0]}, outline", f"{known.examples()[0]}, filled")
    else:
        styles = "fluent style, noto style, twemoji style"
        assert known.line() == f"It knows {number:,} subjects of emoji; style words: {styles}."
        # An emoji's caption names a style always.
        assert all(example.endswith(" style") for example in [*known.examples(), *known.suggestions("bea")])
        before, after = known.edit()
        assert before.endswith(", fluent style")
        assert after == before.replace("fluent style", "noto style")


def test_shown_images_become_svg_with_their_metadata(studio: Studio) -> None:
    drawn = studio.draw("a red heart", 7, 0.5, 1.0, 2)

    files = [Path(file) for file in studio.vector(drawn)]

    originals = studio.model.sample("a red heart", seed=7, num_images=2, truncation=0.5)
    for file, original, seed in zip(files, originals, (7, 8), strict=True):
        assert file.suffix == ".svg"
        head, about, *paths = file.read_text().splitlines()
        assert f"prompt: a red heart; seed: {seed}; truncation: 0.5" in about
        assert "\n".join([head, *paths]) + "\n" == trace(original)


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "draw pictures first"), (17, "17 pictures are more than this page converts, 16")],
)
def test_number_of_images_for_svg_is_limited(studio: Studio, count: int, said: str) -> None:
    shown = studio.draw("a cat", 0, 1.0, 1.0, 1) * count
    with pytest.raises(UserError, match=said):
        studio.vector(shown)
    with pytest.raises(UserError, match=said):
        studio.vector(shown or None)


def test_images_can_be_refined(studio: Studio) -> None:
    ((file, _),) = studio.draw("a cat", 7, 1.0, 1.0, 1, 10)
    (expected,) = studio.model.sample("a cat", seed=7, refine=10)
    with Image.open(file) as found:
        assert found.info["refine"] == "10"
        assert found.resize((8, 8), Image.Resampling.NEAREST).tobytes() == expected.tobytes()


def test_an_edit_keeps_the_latents(studio: Studio) -> None:
    labels = [label for _, label in studio.edit("a red heart", "a cat", 3, 1.0, 1.0)]
    assert labels[:3] == ["a red heart (seed 3)", "a cat (seed 3)", "a red heart (seed 4)"]
    assert len(labels) == 8


def test_variations_begin_with_the_picture_and_go_away_from_it(studio: Studio) -> None:
    def pixels(file: str) -> np.ndarray:
        with Image.open(file) as found:
            return np.asarray(found, dtype=np.int16)

    ((own, _),) = studio.draw("a cat", 5, 1.0, 1.0, 1, 0)
    same, near, far = (studio.vary("a cat", 5, 1.0, 1.0, amount, 0) for amount in (0, 0.2, 1))
    assert [label for _, label in near][:2] == ["seed 5", "variation 1"]
    assert len(near) == 8
    for drawn in (same, near, far):
        assert np.array_equal(pixels(drawn[0][0]), pixels(own))
    distance = [
        np.mean([np.abs(pixels(file) - pixels(own)).mean() for file, _ in drawn[1:]])
        for drawn in (same, near, far)
    ]
    assert distance[0] <= 1  # one level, by rounding within a batch
    assert distance[1] < distance[2]
    with Image.open(near[3][0]) as found:
        assert (found.info["seed"], found.info["variation"], found.info["amount"]) == ("5", "3", "0.2")
    with pytest.raises(UserError, match="amount 2 is not between 0 and 1"):
        studio.vary("a cat", 5, 1.0, 1.0, 2)
    with pytest.raises(UserError, match="the number of variations 0 must be 1 or more"):
        variations(studio.model, "a cat", 5, count=0)


def test_a_subject_is_drawn_in_each_style_with_one_latent(studio: Studio) -> None:
    drawn = studio.restyle("a cat, red", 5, 1.0, 1.0, ["blue", "green"], 0)
    assert [label for _, label in drawn] == ["blue", "green"]
    for (file, style), words in zip(drawn, ("a cat, blue", "a cat, green"), strict=True):
        (expected,) = studio.model.sample(words, 5, refine=0)
        with Image.open(file) as found:
            assert found.info["prompt"] == f"a cat, {style}"
            assert found.resize((8, 8), Image.Resampling.NEAREST).tobytes() == expected.tobytes()


def test_edits_and_films_can_be_refined(studio: Studio) -> None:
    file, _ = studio.edit("a cat", "a dog", 3, 1.0, 1.0, 10)[0]
    with Image.open(file) as found:
        assert found.info["refine"] == "10"
    assert Path(studio.film("a cat", "a dog", 0, 1.0, 1.0, 2, 10)).is_file()
    with pytest.raises(UserError, match="refine 50 is more than this page allows, 40"):
        studio.film("a cat", "a dog", 0, 1.0, 1.0, 2, 50)


def test_animation_has_frames_both_ways(studio: Studio) -> None:
    with Image.open(studio.film("a red heart", "a cat", 0, 1.0, 1.0, 4)) as film:
        assert getattr(film, "n_frames", 1) == 8


def test_old_files_are_deleted(studio: Studio) -> None:
    old, new = (
        Path(studio.draw("a cat", 0, 1.0, 1.0, 1)[0][0]),
        Path(studio.draw("a cat", 1, 1.0, 1.0, 1)[0][0]),
    )
    hours_ago = time.time() - 2 * 3600
    os.utime(old, (hours_ago, hours_ago))
    studio.draw("a cat", 2, 1.0, 1.0, 1)
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("", 0, 1.0, 1.0, 1), "write a prompt first"),
        ((None, 0, 1.0, 1.0, 1), "write a prompt first"),
        (("x" * (MAX_PROMPT + 1), 0, 1.0, 1.0, 1), "the prompt has 301 letters"),
        (("a cat", -1, 1.0, 1.0, 1), "seed -1 is not a whole number"),
        (("a cat", None, 1.0, 1.0, 1), "seed None is not"),
        (("a cat", 0.5, 1.0, 1.0, 1), "seed 0.5 is not a whole number"),
        (("a cat", math.nan, 1.0, 1.0, 1), "seed nan is not a whole number"),
        (("a cat", 0, 7, 1.0, 1), "truncation 7 is not between 0 and 1"),
        (("a cat", 0, 1.0, 11, 1), "guidance 11 is not between 0 and 10"),
        (("a cat", 0, 1.0, None, 1), "guidance None is not between 0 and 10"),
        (("a cat", 0, 1.0, 1.0, 1000), "1000 is not between 1 and 16"),
        (("a cat", 0, 1.0, 1.0, 1, 0.5), "refine 0.5 is not a whole number"),
        (("a cat", 0, 1.0, 1.0, 1, 50), "refine 50 is more than this page allows, 40"),
    ],
)
def test_invalid_input_raises(studio: Studio, given: tuple[Any, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        studio.draw(*given)
    assert not list(studio.folder.glob("*.png"))


def png_of(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says it is so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png_of(10_000, 10_000), "10000 x 10000 pixels: use 25 million at most"),
        (png_of(60_000, 60_000), "more than 25 million pixels"),
        (b"no picture", "cannot be read as a picture"),
        (b"", "cannot be read as a picture"),
        (b"\0" * (11 * 2**20), "larger than 10 MB"),
    ],
    ids=["100 megapixels", "bomb", "text", "empty", "11 MB"],
)
def test_too_large_uploads_are_refused_by_their_header(tmp_path: Path, data: bytes, said: str) -> None:
    file = tmp_path / "upload.png"
    file.write_bytes(data)
    with pytest.raises(UserError, match=said):
        check_upload(file)


def test_valid_upload_is_accepted(tmp_path: Path) -> None:
    made = io.BytesIO()
    noise(20, 12).save(made, "PNG")
    (tmp_path / "upload.png").write_bytes(made.getvalue())
    check_upload(tmp_path / "upload.png")


def test_an_upload_is_enlarged_with_the_page_s_upscaler(studio: Studio, tmp_path: Path) -> None:
    studio.upscaler = upscaler = random_upscaler()
    noise(20, 12).save(tmp_path / "small.png")
    noise(600, 500).save(tmp_path / "large.png")
    uploads = Uploads(studio)

    file = uploads.enlarge(str(tmp_path / "small.png"), "a cat", 0.1, 3)

    with Image.open(tmp_path / "small.png") as small:
        expected = upscaler.upscale(small, "a cat", 0.1, 3)
    with Image.open(file) as found:
        assert found.info["prompt"] == "a cat"
        assert found.resize((80, 48), Image.Resampling.NEAREST).tobytes() == expected.tobytes()
    with pytest.raises(UserError, match="600 x 500 pixels: use 512 x 512 at most"):
        uploads.enlarge(str(tmp_path / "large.png"), "", 0, 0)
    with pytest.raises(UserError, match="noise 2 is not between 0 and 1"):
        uploads.enlarge(str(tmp_path / "small.png"), "", 2, 0)
    with pytest.raises(UserError, match="choose a picture first"):
        uploads.enlarge(None, "", 0, 0)
    with pytest.raises(UserError, match="the picture is not here any more: upload it again"):
        uploads.enlarge(str(tmp_path / "gone.png"), "", 0, 0)


def test_an_upload_is_projected_and_reworded(studio: Studio, tmp_path: Path) -> None:
    noise(20, 20).save(tmp_path / "mine.png")
    uploads = Uploads(studio)
    steps: list[int] = []
    assert uploads.can_project
    assert not uploads.can_translate
    labels = [
        label
        for _, label in uploads.project(str(tmp_path / "mine.png"), "a cat", "a dog", 2, 0, steps.append)
    ]
    assert (labels[0], labels[2], steps) == ("yours", "a dog", [1, 2])
    assert re.fullmatch(r"a cat: \d+\.\d dB", labels[1])
    assert len(uploads.project(str(tmp_path / "mine.png"), "a cat", " ", 1, 0)) == 2
    with pytest.raises(UserError, match="301 is not between 1 and 300"):
        uploads.project(str(tmp_path / "mine.png"), "a cat", "", 301, 0)


def test_missing_gradio_gives_one_line_error(
    trained_once: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", str(trained_once / "runs/tiny")]) == 2
    assert "pip install gradio" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("set_before", "expected"),
    [
        ({}, "127.0.0.1,localhost,192.0.2.5"),
        ({"NO_PROXY": "intern.example, 10.0.0.1"}, "intern.example,10.0.0.1,127.0.0.1,localhost,192.0.2.5"),
        ({"no_proxy": "a.example", "NO_PROXY": "localhost"}, "a.example,localhost,127.0.0.1,192.0.2.5"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_own_page_is_requested_without_a_proxy(
    set_before: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts that are exempt already stay so; the complete test is in tests/cli/test_console.py."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    for name, hosts in set_before.items():
        monkeypatch.setenv(name, hosts)
    past_proxies("192.0.2.5")
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == expected
