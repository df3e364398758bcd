"""The exported page in a real browser: it draws what PyTorch draws, also offline. Needs Debian's chromium.

SCREENSHOTS=folder keeps what the browser showed, to look at.
"""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from imagen_pl import load
from imagen_pl.imaging.transparency import picture_on_white
from imagen_pl.inference.interpolation import interpolate
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.inference.upscaling import Upscaler
from imagen_pl.inference.web_export import PageTexts, export_web
from tests.browser.conftest import CHROMIUM, NARROW, WIDE
from tests.helpers.upscalers import random_upscaler
from tests.inference.test_web_export import wide_model

pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]
CARD = "# A card\n\n| Set | Licence |\n|---|---|\n| Hearts | MIT |\n\n<b onclick='x()'>bold</b>\n"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Site:
    """An exported page, and the model and upscaler in it. `close` takes the server away."""

    def __init__(self, folder: Path, model: TextToImage, upscaler: Upscaler) -> None:
        self.model, self.upscaler = model, upscaler
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def make_site(trained: Path, folder: Path) -> Site:
    model = load(trained / "runs/tiny", device="cpu")
    upscaler = random_upscaler()
    upscaler.model.text_encoder = model.text_encoder
    texts = PageTexts("tiny", ["a red heart", "a cat, fluent style"], CARD)
    export_web(model, folder, texts, upscaler)
    return Site(folder, model, upscaler)


@pytest.fixture(scope="module")
def site(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = make_site(trained_once, tmp_path_factory.mktemp("web") / "site")
    yield made
    made.close()


def visit(browser: Any, address: str, size: dict[str, int], **context: Any) -> Any:
    """The page once it has drawn its first prompt."""
    page = browser.new_context(viewport=size, accept_downloads=True, **context).new_page()
    page.set_default_timeout(60_000)
    page.goto(address)
    wait(page)
    return page


def wait(page: Any) -> None:
    page.wait_for_selector("body[data-state='done']")
    assert page.locator("#error").is_hidden(), page.locator("#error").inner_text()


def keep(page: Any, name: str) -> None:
    if os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(os.environ["SCREENSHOTS"]) / f"{name}.png"), full_page=True)


def shown(page: Any) -> list[np.ndarray]:
    """The pixels of the pictures on the page, (h, w, 4)."""
    code = """canvases => canvases.map(c => {
        const {data, width, height} = c.getContext('2d').getImageData(0, 0, c.width, c.height);
        return {data: [...data], width, height};
    })"""
    found = page.locator("#results canvas").evaluate_all(code)
    return [np.array(x["data"], np.uint8).reshape(x["height"], x["width"], 4) for x in found]


def expected(site: Site, pairs: list[tuple[str, int]], enlarged: bool = True) -> list[np.ndarray]:
    pictures = list(site.model.draw(pairs, refine=0))
    if enlarged:
        prompts = [prompt for prompt, _ in pairs]
        pictures = [site.upscaler.upscale(p, prompt) for p, prompt in zip(pictures, prompts, strict=True)]
    return [np.asarray(picture.convert("RGBA")) for picture in pictures]


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    """Equal up to the levels of 255 that rounding makes of 2e-3 of -1 to 1, a quarter of a level.

    One, and after the random upscaler, which exaggerates, a few.
    """
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert np.abs(a.astype(int) - b.astype(int)).max() <= (1 if len(a) == 8 else 4)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_eight_seeds_are_the_pictures_that_pytorch_draws(browser: Any, site: Site, size: Any) -> None:
    page = visit(browser, site.url, size)
    keep(page, f"web-{size['width']}")
    seeds = range(8)
    assert_same(shown(page), expected(site, [("a red heart", seed) for seed in seeds]))
    assert "8 pictures in" in page.locator("#status").inner_text()
    # Nothing overflows the width of the page.
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0

    page.get_by_label("Enlarge").uncheck()
    page.get_by_label("Seed", exact=True).fill("123456")
    page.get_by_label("Pictures", exact=True).fill("2")
    page.get_by_label("Prompt", exact=True).fill("A  Cat, UNKNOWN wörds")
    page.get_by_role("button", name="Draw").click()
    page.wait_for_function("document.querySelectorAll('#results canvas').length == 2")
    wait(page)
    pairs = [("A Cat, UNKNOWN wörds", 123456 + k) for k in range(2)]
    assert_same(shown(page), expected(site, pairs, enlarged=False))
    page.context.close()


def test_the_page_can_be_used_by_keyboard_alone(browser: Any, site: Site) -> None:
    page = visit(browser, site.url, WIDE)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("a cat")
    page.keyboard.press("Enter")
    wait(page)
    assert page.locator("#results canvas").first.get_attribute("aria-label") == "a cat, seed 0"

    while page.evaluate("document.activeElement.name") != "mode":
        page.keyboard.press("Tab")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.get_by_label("Film", exact=True).is_checked()
    for name in ("other", "seed", "dice", "frames", "enlarge"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == name
    page.context.close()


def test_styles_and_other_words_share_the_seeds(browser: Any, site: Site) -> None:
    page = visit(browser, site.url, WIDE)
    page.get_by_label("Every style").check()
    page.get_by_label("Styles", exact=False).last.fill("fluent style, noto style")
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("heading", name="a red heart, noto style").wait_for()
    wait(page)
    keep(page, "web-styles")
    prompts = ["a red heart, fluent style", "a red heart, noto style"]
    assert_same(shown(page), expected(site, [(prompt, seed) for prompt in prompts for seed in (0, 1)]))

    page.get_by_role("button", name="Other words for seed 1").last.click()
    assert page.get_by_label("Seed", exact=True).input_value() == "1"
    page.get_by_label("Other prompt").fill("a blue heart")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="a blue heart").wait_for()
    wait(page)
    assert_same(shown(page), expected(site, [("a red heart, noto style", 1), ("a blue heart", 1)]))
    page.context.close()


def test_a_film_can_be_paused_and_saved(browser: Any, site: Site) -> None:
    page = visit(browser, site.url + "#prompt=a+cat&other=a+red+heart&mode=film&seed=5", WIDE)
    page.get_by_role("button", name="Pause the film").click()
    page.get_by_role("button", name="Play the film").wait_for()
    keep(page, "web-film")
    with page.expect_download() as waited:
        page.get_by_role("button", name="Save as GIF").click()
    frames = list(interpolate(site.model, [("a cat", 5), ("a red heart", 5)], 16, loop=True))
    with Image.open(waited.value.path()) as film:
        found = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(film)]
    assert len(found) == len(frames) == 32
    for place in (0, 7, 16):
        prompt = "a cat" if place < 8 else "a red heart"
        wanted = np.asarray(site.upscaler.upscale(frames[place], prompt)).astype(int)
        assert np.abs(found[place] - wanted).mean() < 3  # a GIF has 256 colours
    page.context.close()


def test_pictures_are_saved_as_png_and_svg(browser: Any, site: Site) -> None:
    page = visit(browser, site.url, WIDE)
    with page.expect_download() as waited:
        page.get_by_role("button", name="Save seed 3 as PNG").click()
    assert waited.value.suggested_filename == "a-red-heart-3.png"
    with Image.open(io.BytesIO(Path(waited.value.path()).read_bytes())) as picture:
        assert picture.info["prompt"] == "a red heart"
        assert picture.info["seed"] == "3"
        assert_same([np.asarray(picture.convert("RGBA"))], expected(site, [("a red heart", 3)]))
    with page.expect_download() as waited:
        page.get_by_role("button", name="Save seed 3 as SVG").click()
    text = Path(waited.value.path()).read_text()
    assert "<desc>prompt: a red heart; seed: 3; " in text
    assert "<path " in text
    page.context.close()


def test_wrong_input_is_named_and_focused(browser: Any, site: Site) -> None:
    page = visit(browser, site.url, NARROW)
    page.get_by_label("Prompt", exact=True).fill("  ")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("The prompt is empty").wait_for()
    page.get_by_label("Prompt", exact=True).fill("a cat")
    page.get_by_label("Seed", exact=True).fill("1.5")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("The seed must be a whole number from 0 to 2147483647").wait_for()
    assert page.evaluate("document.activeElement.id") == "seed"
    page.context.close()


def test_the_card_is_shown_without_its_html(browser: Any, site: Site) -> None:
    page = visit(browser, site.url, NARROW)
    page.get_by_text("About this model").click()
    page.get_by_role("cell", name="Hearts").wait_for()
    assert page.locator("#card b").count() == 0
    page.context.close()


def test_the_page_works_offline_after_its_first_load(
    browser: Any, trained_once: Path, tmp_path: Path
) -> None:
    site = make_site(trained_once, tmp_path / "site")
    page = visit(browser, site.url, WIDE)
    page.wait_for_selector("body[data-offline='true']")
    site.close()

    page.reload()
    wait(page)
    page.get_by_label("Prompt", exact=True).fill("a cat")
    page.keyboard.press("Enter")
    page.locator("canvas[aria-label='a cat, seed 7']").wait_for()
    wait(page)
    assert_same(shown(page), expected(site, [("a cat", seed) for seed in range(8)]))
    with page.expect_download():
        page.get_by_role("button", name="Save seed 0 as SVG").click()
    page.context.close()


def test_transparent_pictures_of_another_shape_are_drawn(browser: Any, bert: Path, tmp_path: Path) -> None:
    model = wide_model(bert)
    export_web(model, tmp_path / "site", PageTexts("wide", ["a cat"], CARD))
    site = Site(tmp_path / "site", model, random_upscaler())
    page = visit(browser, site.url, NARROW)
    keep(page, "web-alpha")
    for found, wanted in zip(shown(page), model.sample("a cat", 0, 8), strict=True):
        assert (found.shape, wanted.mode) == ((8, 12, 4), "RGBA")
        # A canvas rounds the colours of nearly transparent pixels, so the pictures are compared on white.
        drawn, expected = (np.asarray(picture_on_white(p), int) for p in (Image.fromarray(found), wanted))
        assert np.abs(drawn - expected).max() <= 2
    page.context.close()
    site.close()
