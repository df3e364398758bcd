"""The tabs of the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imagen_pl.demo.checks import MAX_ENLARGED_SIDE, MAX_FRAMES, MAX_IMAGES, MAX_PROJECTION
from imagen_pl.imaging.grids import size_text
from imagen_pl.inference.refinement import can_refine

if TYPE_CHECKING:
    from imagen_pl.demo.page import Controls

_STYLES = 12  # style words of one restyling
_STEPS = 100  # of a projection


def _gallery(label: str, columns: int = 4) -> Any:
    import gradio as gr

    return gr.Gallery(
        label=label,
        columns=columns,
        height="auto",
        object_fit="contain",
        format="png",
        type="filepath",
        interactive=False,
    )


def _upload(label: str = "A picture") -> Any:
    import gradio as gr

    # Not gr.Image, which decodes uploads before `check_upload`.
    return gr.File(label=label, file_types=["image"], type="filepath", height=150)


def pictures(controls: Controls) -> tuple[Any, Any, Any]:
    """What the prompt gives: the gallery, the seed of the picture chosen in it, and a button to vary that."""
    import gradio as gr

    studio = controls.studio
    with gr.Tab("Pictures", id="pictures"):
        gallery = _gallery("Pictures: click on one to choose it")
        chosen = gr.Number(0, precision=0, visible=False)
        with gr.Row():
            near = gr.Button("Vary the chosen picture", size="md", min_width=130)
            as_svg = gr.Button("Convert to SVG", size="md", min_width=130)
        traced = gr.File(label="SVG", file_count="multiple", interactive=False, visible=False)

    def choose(event: Any) -> int:
        """The seed in the label of the picture."""
        number = re.search(r"\d+$", str((event.value or {}).get("caption", "")))
        return int(number[0]) if number else 0

    choose.__annotations__["event"] = gr.SelectData  # by which Gradio knows what to pass
    quick: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    gallery.select(choose, None, chosen, **quick)
    converted = controls.on(as_svg.click, studio.vector, gallery, traced, "vector")
    converted.success(lambda: gr.File(visible=True), None, traced, **quick)
    return gallery, chosen, near


def variations(controls: Controls, chosen: Any, near: Any) -> None:
    """Pictures near the chosen one, and the same in other styles.

    Args:
        controls: of the page.
        chosen: the seed of the chosen picture.
        near: a button elsewhere that does the same.
    """
    import gradio as gr

    studio, known = controls.studio, controls.known.vocabulary
    styles = list(known.attributes[:_STYLES]) if known is not None else []
    with gr.Tab("Variations", id="variations"):
        gr.Markdown("Pictures near the one that you chose under Pictures, else near the first.")
        amount = gr.Slider(0, 1, 0.4, step=0.05, label="Amount: 0 is the same picture, 1 is any other")
        with gr.Row():
            go = gr.Button("Draw variations", variant="primary", size="md", min_width=130)
            every = gr.Button("Draw it in other styles", size="md", min_width=130, visible=bool(styles))
        sheet = _gallery("Variations")
    inputs = [controls.prompt, chosen, controls.truncation, controls.guidance, amount, controls.refine]
    controls.on(go.click, studio.vary, inputs, sheet, "vary")
    opened = near.click(
        lambda: gr.Tabs(selected="variations"), None, controls.tabs, api_visibility="private", queue=False
    )
    controls.on(opened.then, studio.vary, inputs, sheet, "")

    def in_styles(prompt: str, seed: float, truncation: float, guidance: float, refine: float) -> Any:
        return studio.restyle(prompt, seed, truncation, guidance, styles, refine)

    inputs = [controls.prompt, chosen, controls.truncation, controls.guidance, controls.refine]
    if styles:
        controls.on(every.click, in_styles, inputs, sheet, "restyle")


def change_words(controls: Controls, examples: Sequence[str]) -> None:
    """The same latents with other words."""
    import gradio as gr

    before, after = controls.known.edit()
    if not before and examples:
        before, after = examples[0], examples[-1]
    with gr.Tab("Change words", id="change"):
        first = gr.Textbox(label="Before", value=before, placeholder="what to draw")
        second = gr.Textbox(label="After", value=after, placeholder="the same with other words")
        go = gr.Button("Draw both", variant="primary")
        sheet = _gallery("In pairs: before, then after")
    controls.on(
        go.click, controls.studio.edit, [first, second, *controls.how, controls.refine], sheet, "edit"
    )


def film(controls: Controls, examples: Sequence[str]) -> None:
    """From one prompt to another."""
    import gradio as gr

    model = controls.studio.model
    first, last = (examples[0], examples[-1]) if examples else ("", "")
    with gr.Tab("From one to the other", id="film"):
        before = gr.Textbox(label="From", value=first, placeholder="what to draw")
        after = gr.Textbox(label="To", value=last, placeholder="what it becomes")
        with gr.Row():
            frames = gr.Slider(4, MAX_FRAMES, 16, step=1, label="Frames each way")
            # Frames are refined independently, so a film is smoother without refinement.
            refine = gr.Slider(
                0, 20, 0, step=10, label="Refine each frame", visible=can_refine(model.generator)
            )
        go = gr.Button("Film", variant="primary")
        shown = gr.Image(label=f"Film, {size_text(model.size)}", type="filepath", interactive=False)
    inputs = [before, after, *controls.how, frames, refine]
    controls.on(go.click, controls.studio.film, inputs, shown, "interpolate")


def your_picture(controls: Controls) -> None:
    """Find how the model draws an uploaded picture, and change its words."""
    import gradio as gr

    with gr.Tab("Your picture", id="project"):
        gr.Markdown(
            "Upload a picture like those that the model draws. The page searches how the model would draw "
            "it, and draws that with other words."
        )
        upload = _upload()
        words = gr.Textbox(label="What it shows", placeholder="as a prompt")
        after = gr.Textbox(label="Changed words", placeholder="may stay empty")
        steps = gr.Slider(
            20, MAX_PROJECTION, _STEPS, step=20, label="Steps: more come nearer, and take longer"
        )
        go = gr.Button("Find and draw", variant="primary")
        sheet = _gallery("Yours, the model's, and with changed words", columns=3)

    def search(
        file: str,
        prompt: str,
        to: str,
        steps: float,
        seed: float,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> Any:
        def on_step(step: int) -> None:
            progress((step, int(steps)), desc="searching", unit="steps")

        return controls.uploads.project(file, prompt, to, steps, seed, on_step)

    controls.on(go.click, search, [upload, words, after, steps, controls.seed], sheet, "project")


def translate(controls: Controls) -> None:
    """An uploaded picture in other styles."""
    import gradio as gr

    captions = list(dict.fromkeys(controls.known.domains()))
    with gr.Tab("Translate", id="translate"):
        with gr.Row():
            upload = _upload()
            like = _upload("A picture whose style it gets (may stay empty)")
        domain = gr.Dropdown(
            captions,
            value=captions[0] if captions else None,
            label="Style",
            allow_custom_value=True,
        )
        go = gr.Button("Translate", variant="primary")
        with gr.Accordion("Advanced", open=False), gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            number = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Number of translations")
        sheet = _gallery("Yours, then translated")
    controls.on(
        go.click, controls.uploads.translate, [upload, domain, seed, number, like], sheet, "translate"
    )


def enlarge(controls: Controls) -> None:
    """An uploaded picture, enlarged."""
    import gradio as gr

    with gr.Tab("Enlarge", id="enlarge"):
        upload = _upload(f"A small picture, up to {MAX_ENLARGED_SIDE} x {MAX_ENLARGED_SIDE} px")
        words = gr.Textbox(label="What it shows", placeholder="may stay empty")
        go = gr.Button("Enlarge", variant="primary")
        with gr.Accordion("Advanced", open=False), gr.Row():
            noise = gr.Slider(0, 0.3, 0, step=0.01, label="Noise: a little may replace faults by detail")
            seed = gr.Number(0, label="Seed of the noise", precision=0, minimum=0)
        large = gr.Image(label="Enlarged", type="filepath", format="png", interactive=False)
    controls.on(go.click, controls.uploads.enlarge, [upload, words, noise, seed], large, "upscale")


def caption(controls: Controls) -> None:
    """What an uploaded picture shows."""
    import gradio as gr

    with gr.Tab("Caption", id="caption"):
        upload = _upload()
        go = gr.Button("What does it show?", variant="primary")
        words = gr.Textbox(label="Caption", interactive=False)
    controls.on(go.click, controls.uploads.caption, [upload], words, "caption")


def history() -> Any:
    """The session's draws, to click on."""
    import gradio as gr

    with gr.Tab("History", id="history"):
        return gr.Dataset(
            components=[gr.Textbox(render=False), gr.Number(render=False)],
            headers=["Prompt", "Seed"],
            samples=[],
            label="Drawn in this session: click on one to bring it back",
            samples_per_page=20,
        )
