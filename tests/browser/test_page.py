"""The page in a real browser: type a prompt, see pictures, download one. Needs Debian's chromium.

SCREENSHOTS=folder keeps what the browser showed, to look at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from imagen_pl import load
from imagen_pl.cli.main import main
from imagen_pl.demo.studio import Studio
from imagen_pl.inference.captioning import CaptioningPipeline
from imagen_pl.types import Growth
from tests.browser.conftest import CHROMIUM, NARROW, WIDE
from tests.cli.test_demo import png_of
from tests.helpers.captioners import tiny_captioner
from tests.helpers.image_files import noise, write_photos
from tests.helpers.runs import tiny_config
from tests.helpers.transformers_models import save_bert

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a served page, with a tiny model and an untrained captioner."""
    import yaml

    folder = tmp_path_factory.mktemp("served")
    torch.set_num_threads(1)
    config = tiny_config(write_photos(folder / "photos", count=12, side=16), save_bert(folder / "bert"))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        assert main(["fit", "--config", "tiny.yaml"]) == 0
        captioner = tiny_captioner()
        captioner.prepare(lambda: ["a red heart", "a cat"])
        (folder / "files").mkdir()
        studio = Studio(
            load("runs/tiny", device="cpu"),
            "runs/tiny",
            CaptioningPipeline(captioner, Growth(8)),
            folder / "files",
        )
        pytest.importorskip("gradio")
        from imagen_pl.demo.page import build_page, launch_options

        page: Any = build_page(studio, ["a red heart", "a cat, fluent style"])
        page.launch(server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, **launch_options(studio))
        yield page.local_url
        page.close(verbose=False)


def visit(browser: Any, url: str, size: dict[str, int]) -> Any:
    page = browser.new_page(viewport=size, accept_downloads=True)
    page.set_default_timeout(60_000)
    page.goto(url)
    page.get_by_role("button", name="Draw", exact=True).wait_for()
    return page


def keep(page: Any, name: str) -> None:
    if os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(os.environ["SCREENSHOTS"]) / f"{name}.png"), full_page=True)


def draw(page: Any, prompt: str) -> Any:
    """Type a prompt and wait for the pictures."""
    page.get_by_label("Prompt", exact=True).first.fill(prompt)
    page.get_by_role("button", name="Draw", exact=True).click()
    pictures = page.locator(".grid-container img, .gallery-item img, button.thumbnail-item img")
    pictures.first.wait_for()
    return pictures


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_prompt_gives_images(browser: Any, url: str, size: dict[str, int], tmp_path: Path) -> None:
    page = visit(browser, url, size)
    pictures = draw(page, "a cat, fluent style")
    assert pictures.count() == 8
    # On a busy machine the page shows a picture before it is fully loaded.
    page.wait_for_function("image => image.complete", arg=pictures.first.element_handle())
    assert pictures.first.evaluate("image => image.naturalWidth") == 256
    keep(page, f"draw-{size['width']}")
    # Nothing overflows the width of the page or of the gallery.
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert pictures.last.evaluate("x => x.getBoundingClientRect().right - window.innerWidth") <= 0

    # Every row is visible without scrolling inside the gallery.
    assert page.locator(".grid-wrap").first.evaluate("x => x.scrollHeight - x.clientHeight") <= 0

    pictures.first.click()
    with page.expect_download() as waited:
        page.get_by_role("button", name="Download").or_(page.get_by_label("Download")).first.click()
    waited.value.save_as(tmp_path / "downloaded.png")
    with Image.open(tmp_path / "downloaded.png") as downloaded:
        assert downloaded.info["prompt"] == "a cat, fluent style"
    page.close()


def test_shown_images_can_be_downloaded_as_svg(browser: Any, url: str, tmp_path: Path) -> None:
    page = visit(browser, url, WIDE)
    draw(page, "a red heart")
    page.get_by_role("button", name="Convert to SVG").click()
    links = page.locator("a[href*='.svg']")
    links.first.wait_for()
    assert links.count() == 8
    with page.expect_download() as waited:
        links.first.click()
    waited.value.save_as(tmp_path / "downloaded.svg")
    assert "prompt: a red heart; seed: 0" in (tmp_path / "downloaded.svg").read_text()
    page.close()


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_prompt_and_draw_button_are_on_top(browser: Any, url: str, size: dict[str, int]) -> None:
    page = visit(browser, url, size)
    prompt = page.get_by_label("Prompt", exact=True).first.bounding_box()
    box = page.get_by_role("button", name="Draw", exact=True).bounding_box()
    assert prompt["y"] < box["y"]
    assert box["y"] + box["height"] <= 400
    assert not page.get_by_label("Seed", exact=True).first.is_visible()
    page.get_by_text("Advanced").first.click()
    page.get_by_label("Seed", exact=True).first.wait_for()
    page.close()


def test_another_seed_redraws_and_history_brings_back(browser: Any, url: str) -> None:
    page = visit(browser, url, WIDE)
    first = page.get_by_text("seed 0", exact=True)
    draw(page, "a cat")
    first.wait_for()
    page.get_by_role("button", name="Another seed").click()
    first.wait_for(state="detached")

    page.get_by_role("tab", name="History").click()
    cell = page.locator("td:visible", has_text=re.compile(r"^\s*0\s*$"))
    cell.wait_for()
    keep(page, "history")
    cell.click()
    first.wait_for()

    page.get_by_text("Advanced").first.click()
    page.get_by_label("New seed at each draw").check()
    page.get_by_role("button", name="Draw", exact=True).click()
    first.wait_for(state="detached")
    page.close()


def test_a_chosen_picture_is_varied(browser: Any, url: str) -> None:
    page = visit(browser, url, WIDE)
    draw(page, "a cat").nth(3).click()
    page.get_by_role("button", name="Vary the chosen picture").click()
    page.get_by_text("variation 7", exact=True).first.wait_for()
    keep(page, "variations")
    assert page.get_by_role("tabpanel").filter(has_text="variation 7").get_by_text("seed 3").count()
    page.close()


@pytest.mark.parametrize(
    ("prompt", "message"), [("   ", "write a prompt first"), ("x" * 301, "the prompt has 301 letters")]
)
def test_an_empty_or_too_long_prompt_shows_an_error(
    prompt: str, message: str, browser: Any, url: str
) -> None:
    page = visit(browser, url, WIDE)
    page.get_by_label("Prompt", exact=True).first.fill(prompt)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text(message).first.wait_for()
    page.close()


def test_a_suggestion_fills_the_prompt(browser: Any, url: str) -> None:
    page = visit(browser, url, NARROW)
    page.get_by_role("button", name="a cat, fluent style").click()
    prompt = page.get_by_label("Prompt", exact=True).first.element_handle()
    page.wait_for_function("prompt => prompt.value == 'a cat, fluent style'", arg=prompt)
    page.close()


def test_edit_and_interpolation_work(browser: Any, url: str) -> None:
    page = visit(browser, url, WIDE)
    page.get_by_role("tab", name="Change words").click()
    page.get_by_label("Before").fill("a red heart")
    page.get_by_label("After").fill("a cat")
    page.get_by_role("button", name="Draw both").click()
    page.get_by_text("a cat (seed 0)").first.wait_for()
    keep(page, "edit")
    page.get_by_role("tab", name="From one to the other").click()
    page.get_by_role("button", name="Film").click()
    page.locator("img[src$='.gif']").first.wait_for()
    keep(page, "film")
    page.close()


def visit_and_upload(browser: Any, url: str, file: Path) -> Any:
    """The page while it captions a file."""
    page = visit(browser, url, WIDE)
    page.get_by_role("tab", name="Caption").click()
    go = page.get_by_role("button", name="What does it show?")
    go.wait_for()
    page.locator("input[type=file]").last.set_input_files(str(file))
    # Gradio writes a space between the stem and the suffix of an uploaded file.
    page.get_by_text(re.compile(rf"{file.stem}\s*{re.escape(file.suffix)}")).first.wait_for()
    go.click()
    return page


def test_upload_is_captioned_and_decompression_bomb_is_refused(
    browser: Any, url: str, tmp_path: Path
) -> None:
    noise(20, 12).save(tmp_path / "good.png")
    (tmp_path / "bomb.png").write_bytes(png_of(10_000, 10_000))
    page = visit_and_upload(browser, url, tmp_path / "bomb.png")
    page.get_by_text("10000 x 10000 pixels").first.wait_for()
    keep(page, "bomb")
    page.close()

    page = visit_and_upload(browser, url, tmp_path / "good.png")
    page.wait_for_function(
        "[...document.querySelectorAll('textarea')].some(t => t.disabled && t.value.length > 0)"
    )
    keep(page, "caption")
    page.close()
