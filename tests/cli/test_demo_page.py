"""The page as programs use it: its API, what it says of wrong input, and what it keeps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagen_pl import load
from imagen_pl.demo.checks import MAX_PROMPT
from imagen_pl.demo.studio import Studio
from imagen_pl.demo.worker import Worker
from imagen_pl.training.malloc import release_freed_memory
from tests.helpers.image_files import noise

gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")


@pytest.fixture
def studio(trained_once: Path, tmp_path: Path) -> Studio:
    return Studio(load(trained_once / "runs/tiny", device="cpu"), "runs/tiny", None, tmp_path)


@pytest.fixture
def page(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The served page."""
    from imagen_pl.demo.page import build_page, launch_options

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(studio.folder / "gradio"))
    built = build_page(studio, ["a red heart", "a cat"])
    built.launch(server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, **launch_options(studio))
    yield built
    built.close(verbose=False)


@pytest.fixture
def client(page: Any, tmp_path: Path) -> Any:
    """A client of the page."""
    return gradio_client.Client(page.local_url, verbose=False, download_files=str(tmp_path / "downloads"))


def sliders(studio: Studio) -> list[Any]:
    from imagen_pl.demo.page import build_page

    return [block for block in build_page(studio).blocks.values() if isinstance(block, gradio.Slider)]


@pytest.mark.slow
def test_a_client_draws_edits_and_films(client: Any) -> None:
    pictures = client.predict("a red heart", 7, 1.0, 2.5, 2, api_name="/draw")
    assert [picture["caption"] for picture in pictures] == ["seed 7", "seed 8"]
    with Image.open(pictures[0]["image"]) as downloaded:
        assert downloaded.info["prompt"] == "a red heart"
        assert downloaded.info["guidance"] == "2.5"
    assert len(client.predict("a red heart", "a cat", 0, 1.0, 1.0, api_name="/edit")) == 8
    assert len(client.predict("a red heart", 0, 1.0, 1.0, 0.3, 0, api_name="/vary")) == 8
    assert Path(client.predict("a red heart", "a cat", 0, 1.0, 1.0, 4, api_name="/interpolate")).is_file()
    traced = client.predict(
        [{"image": gradio_client.handle_file(p["image"]), "caption": p["caption"]} for p in pictures],
        api_name="/vector",
    )
    assert [Path(file).suffix for file in traced] == [".svg", ".svg"]


@pytest.mark.slow
def test_an_upload_is_searched_and_deleted_with_its_copies(
    client: Any, page: Any, studio: Studio, tmp_path: Path
) -> None:
    noise(20, 20).save(tmp_path / "mine.png")
    upload = gradio_client.handle_file(str(tmp_path / "mine.png"))
    found = client.predict(upload, "a cat", "a dog", 20, 0, api_name="/project")
    assert [picture["caption"] for picture in found][::2] == ["yours", "a dog"]
    uploads = list((studio.folder / "gradio").rglob("mine.png"))
    assert uploads
    every_s, age_s = page.delete_cache
    assert every_s <= age_s <= 3600

    from gradio.route_utils import delete_files_created_by_app

    delete_files_created_by_app(page, None)  # as Gradio does after that time, and at the end
    assert not [file for file in (studio.folder / "gradio").rglob("*.png") if file.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((" ", 7, 1.0, 1.0, 2, 0), "write a prompt first"),
        (("x" * (MAX_PROMPT + 1), 7, 1.0, 1.0, 2, 0), "the prompt has 301 letters: use 300 at most"),
        (("a cat", 7, 1.0, 1.0, 10_000, 0), "greater than maximum"),
        (("a cat", "seven", 1.0, 1.0, 2, 0), "Seed: 'seven' is no value for it"),
        (("a cat", [1], 1.0, 1.0, 2, 0), "Seed: "),
        (("a cat", 7, {"a": 1}, 1.0, 2, 0), "Truncation: "),
        (("a cat", 7, 1.0, None, 2, 0), "Guidance: .*: None is no value for it"),
        ((["a"], 7, 1.0, 1.0, 2, 0), None),
        (("a cat", 3e9, 1.0, 1.0, 2, 0), "is not a whole number from 0 to"),
    ],
)
def test_wrong_values_give_a_message_and_no_traceback(
    client: Any, given: tuple[Any, ...], said: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    if said is None:  # a list has a text
        assert len(client.predict(*given, api_name="/draw")) == 2
    else:
        with pytest.raises(Exception, match=said):
            client.predict(*given, api_name="/draw")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("data", [[], ["a cat"], [{"path": "/etc/hostname"}, "", 20, 0]])
def test_wrong_requests_give_no_traceback(
    page: Any, data: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """As sent without Gradio's client, which checks them first."""
    import httpx

    name = "project" if data and isinstance(data[0], dict) else "draw"
    at = f"{page.local_url}gradio_api/call/{name}"
    with httpx.Client(trust_env=False, timeout=60) as http:
        event = http.post(at, json={"data": data}).json()["event_id"]
        assert "event: error" in http.get(f"{at}/{event}").text
    assert "Traceback" not in capfd.readouterr().err


def test_the_prompt_is_not_cut(studio: Studio) -> None:
    from imagen_pl.demo.page import build_page

    texts = [block for block in build_page(studio).blocks.values() if isinstance(block, gradio.Textbox)]
    assert [text.max_length for text in texts] == [None] * len(texts)


def test_guidance_slider_follows_truncation_and_starts_at_one(studio: Studio) -> None:
    truncation, guidance = sliders(studio)[1:3]
    assert truncation.label.startswith("Truncation")
    assert guidance.label.startswith("Guidance")
    assert guidance.parent.parent is truncation.parent.parent  # the same row
    assert (guidance.minimum, guidance.maximum, guidance.value) == (0, 3, 1)


@pytest.mark.parametrize("prior", [True, False])
def test_refine_slider_is_visible_with_a_prior(studio: Studio, prior: bool) -> None:
    if not prior:
        studio.model.generator.register_module("prior", None)
    refine, frames = (slider for slider in sliders(studio) if slider.label.startswith("Refine"))
    assert (refine.visible, refine.minimum, refine.maximum, refine.value) == (prior, 0, 40, 20 * prior)
    assert (frames.visible, frames.value) == (prior, 0)


def test_every_function_that_draws_runs_alone(studio: Studio) -> None:
    """Several at a time would need the memory of all of them."""
    from imagen_pl.demo.page import build_page

    page = build_page(studio)
    public = [fn for fn in page.fns.values() if fn.api_visibility == "public"]
    assert {fn.api_name for fn in public} == {
        "draw", "vary", "vector", "edit", "interpolate", "project", "upscale"
    }  # fmt: skip
    assert {fn.concurrency_id for fn in public} == {"model"}
    assert {fn.concurrency_limit for fn in public} == {1}


def test_the_worker_has_one_thread_and_passes_errors_on() -> None:
    worker = Worker()
    assert worker.run(threading.get_ident) == worker.run(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        worker.run(lambda: 1 // 0)
    assert release_freed_memory() in (True, False)
