"""The functions behind the page, and the page served to a client."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagen_pl import load
from imagen_pl.cli.demo import past_proxies
from imagen_pl.cli.main import main
from imagen_pl.demo.page import MAX_PROMPT, Studio, build_page, check_upload, example_prompts
from imagen_pl.errors import UserError
from imagen_pl.imaging.svg import trace
from tests.helpers.image_files import noise
from tests.helpers.upscalers import random_upscaler


@pytest.fixture
def studio(trained_once: Path, tmp_path: Path) -> Studio:
    return Studio(load(trained_once / "runs/tiny", device="cpu"), "runs/tiny", None, tmp_path)


# ------------------------------------------------------------------ without the page


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
    private = example_prompts(studio.model)  # of a folder

    studio.model.description |= {"captions": captions, "data": icons}

    assert example_prompts(studio.model) == ["bell", "bell, outline", "camera"]
    assert private == build_page.__defaults__[0]  # type: ignore[index]


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


# ------------------------------------------------------------------ the page


@pytest.fixture
def client(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the page."""
    gradio_client = pytest.importorskip("gradio_client")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    page = build_page(studio, ["a red heart", "a cat"])
    page.launch(
        server_name="127.0.0.1", allowed_paths=[str(studio.folder)], quiet=True, prevent_thread_lock=True
    )
    yield gradio_client.Client(page.local_url, verbose=False, download_files=str(studio.folder / "downloads"))
    page.close(verbose=False)


@pytest.mark.slow
def test_a_client_draws_edits_and_films(client: Any) -> None:
    pictures = client.predict("a red heart", 7, 1.0, 2.5, 2, api_name="/draw")
    assert [picture["caption"] for picture in pictures] == ["seed 7", "seed 8"]
    with Image.open(pictures[0]["image"]) as downloaded:
        assert downloaded.info["prompt"] == "a red heart"
        assert downloaded.info["guidance"] == "2.5"
    assert len(client.predict("a red heart", "a cat", 0, 1.0, 1.0, api_name="/edit")) == 8
    assert Path(client.predict("a red heart", "a cat", 0, 1.0, 1.0, 4, api_name="/interpolate")).is_file()


def test_guidance_slider_is_below_truncation_and_starts_at_one(studio: Studio) -> None:
    gradio = pytest.importorskip("gradio")
    sliders = [b for b in build_page(studio).blocks.values() if isinstance(b, gradio.Slider)]
    truncation, guidance = sliders[:2]
    assert truncation.label.startswith("Truncation")
    assert guidance.label.startswith("Guidance")
    assert guidance.parent is truncation.parent
    assert (guidance.minimum, guidance.maximum, guidance.value) == (0, 3, 1)


@pytest.mark.parametrize("prior", [True, False])
def test_refine_slider_is_visible_with_a_prior(studio: Studio, prior: bool) -> None:
    gradio = pytest.importorskip("gradio")
    if not prior:
        studio.model.generator.register_module("prior", None)
    sliders = [b for b in build_page(studio).blocks.values() if isinstance(b, gradio.Slider)]
    (refine,) = (b for b in sliders if b.label.startswith("Refine"))
    assert (refine.visible, refine.minimum, refine.maximum, refine.value) == (prior, 0, 40, 20 * prior)


@pytest.mark.slow
def test_client_gets_error_messages(client: Any) -> None:
    with pytest.raises(Exception, match="write a prompt first"):
        client.predict(" ", 7, 1.0, 1.0, 2, api_name="/draw")
    with pytest.raises(Exception, match="greater than maximum"):
        client.predict("a cat", 7, 1.0, 1.0, 10_000, api_name="/draw")


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
