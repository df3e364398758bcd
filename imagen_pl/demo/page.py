"""The demo page: images for prompts, in a browser (Gradio)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from imagen_pl.demo import tabs
from imagen_pl.demo.checks import MAX_IMAGES, MAX_REFINE, MAX_UPLOAD_MB
from imagen_pl.demo.facts import Knowledge
from imagen_pl.demo.studio import KEPT_S, Studio
from imagen_pl.demo.uploads import Uploads
from imagen_pl.demo.worker import Worker
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import size_text
from imagen_pl.inference.refinement import can_refine

# On phones, galleries have two columns, and show all images without scrolling.
_CSS = """
@media (max-width: 640px) { .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; } }
/* Gradio cuts a gallery at 55% of the window's height, which hides half of the second row. */
.grid-wrap { max-height: none !important; }
"""
# Behind transparent pictures, as image viewers show them.
_CHECKERBOARD = """
.grid-wrap img, .preview img, .thumbnail-item img
  { background: repeating-conic-gradient(#ddd 0 25%, #fff 0 50%) 0 0 / 16px 16px; }
"""
_SESSIONS = 100  # whose state Gradio keeps, about 100 KB each
_HISTORY = 50  # draws of a session


def launch_options(studio: Studio) -> dict[str, Any]:
    """The arguments of `launch` that the page needs."""
    return {
        "allowed_paths": [str(studio.folder)],
        "max_file_size": f"{MAX_UPLOAD_MB}mb",
        "css": _CSS + _CHECKERBOARD if studio.model.alpha else _CSS,
        "state_session_capacity": _SESSIONS,
    }


def _blocks(**settings: Any) -> Any:
    """gradio.Blocks that answer inputs of the wrong kind with a message, without a traceback in the log."""
    import gradio as gr

    class Page(gr.Blocks):
        async def preprocess_data(
            self, block_fn: Any, inputs: list[Any], *more: Any, **named: Any
        ) -> list[Any]:
            """The inputs of an event as its function takes them. Raises gradio.Error for wrong ones."""
            try:
                return await super().preprocess_data(block_fn, inputs, *more, **named)
            except gr.Error as error:
                raise gr.Error(error.message, print_exception=False) from error
            except Exception as error:  # what components raise for wrong input is of many kinds
                raise gr.Error(_wrong_input(error, block_fn, inputs), print_exception=False) from error

    return Page(**settings)


def _wrong_input(error: Exception, block_fn: Any, inputs: list[Any]) -> str:
    """Gradio's error as one line, with the name of the input if it is known."""
    place = re.search(r"component at index (\d+)", str(error))
    if place is None:
        return f"wrong input: {' '.join(str(error).split())[:200]}"
    k = int(place[1])
    return f"{block_fn.inputs[k].label}: {repr(inputs[k])[:100]} is no value for it"


@dataclass
class Controls:
    """What all tabs share.

    studio, uploads: the functions behind the buttons.
    known: what the model knows.
    prompt, seed, randomise, truncation, guidance, refine, number: inputs of all tabs, if the model draws.
    tabs: the tabs.
    worker: runs the functions.
    """

    studio: Studio
    uploads: Uploads
    known: Knowledge
    worker: Worker = field(default_factory=Worker)
    tabs: Any = None
    prompt: Any = None
    seed: Any = None
    randomise: Any = None
    truncation: Any = None
    guidance: Any = None
    refine: Any = None
    number: Any = None

    @property
    def how(self) -> list[Any]:
        """The inputs seed, truncation and guidance."""
        return [self.seed, self.truncation, self.guidance]

    def runs(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """A function for an event: run in the worker, with a UserError as a message on the page."""
        import gradio as gr

        def run(*given: Any) -> Any:
            try:
                return self.worker.run(work, *given)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return run

    def on(
        self, event: Callable[..., Any], work: Callable[..., Any], inputs: Any, outputs: Any, api_name: str
    ) -> Any:
        """Attach a function that uses the model to an event; such functions run one at a time."""
        return event(
            self.runs(work),
            inputs,
            outputs,
            api_name=api_name or None,
            api_visibility="public" if api_name else "private",
            concurrency_limit=1,
            concurrency_id="model",
        )


def private(
    event: Callable[..., Any], work: Callable[..., Any], inputs: Any, outputs: Any, **more: Any
) -> Any:
    """Attach a quick function to an event, without an API endpoint."""
    return event(
        work,
        inputs,
        outputs,
        api_visibility="private",
        queue=False,
        show_progress="hidden",
        **more,
    )


def new_seed() -> int:
    """A random seed."""
    return secrets.randbelow(2**31)


def build_page(studio: Studio, examples: Sequence[str] | None = None) -> Any:
    """The page, as gradio.Blocks.

    Args:
        studio: functions behind the buttons.
        examples: prompts to click on; None takes captions of the model, if they may be published.
    """
    import gradio as gr

    known = Knowledge.of(studio.model)
    shown = list(known.examples() if examples is None else examples)
    controls = Controls(studio, Uploads(studio), known)
    # Gradio's copies of pictures, and uploads, are deleted after an hour, as the studio's files.
    with _blocks(title="imagen_pl", analytics_enabled=False, delete_cache=(KEPT_S // 6, KEPT_S)) as page:
        line = f"{studio.name}, {size_text(studio.size)}. {known.line()}"
        gr.Markdown(f"# imagen_pl\n\n{line}")
        if studio.draws:
            _drawing_page(controls, shown)
        else:
            _picture_page(controls)
    page.queue(max_size=32, default_concurrency_limit=1)
    return page


def _picture_page(controls: Controls) -> None:
    """The page of an image-to-image model."""
    import gradio as gr

    with gr.Tabs() as controls.tabs:
        if controls.uploads.can_translate:
            tabs.translate(controls)
        if controls.uploads.can_enlarge:
            tabs.enlarge(controls)
        if controls.studio.captioner is not None:
            tabs.caption(controls)
    if not controls.uploads.can_translate and not controls.uploads.can_enlarge:
        verb = controls.studio.model.generator.verb
        gr.Markdown(f"This page has nothing for such a model: use `imagen-pl {verb}`.")


def _drawing_page(controls: Controls, examples: list[str]) -> None:
    """The page of a text-to-image model."""
    import gradio as gr

    studio, known = controls.studio, controls.known
    first = examples[0] if examples else ""
    controls.prompt = prompt = gr.Textbox(
        label="Prompt", value=first, placeholder="what to draw", autofocus=True
    )
    with gr.Row():
        # Narrow enough to stand side by side on a phone.
        go = gr.Button("Draw", variant="primary", min_width=130)
        again = gr.Button("Another seed", min_width=130)
    suggested = gr.Dataset(
        components=[gr.Textbox(visible=False, render=False)],
        samples=[[text] for text in examples],
        label="Suggestions",
        visible=bool(examples),
    )
    _advanced(controls)

    def suggest(text: str) -> Any:
        found = known.suggestions(text) if str(text or "").strip() else examples
        return gr.Dataset(samples=[[each] for each in found], visible=bool(found))

    private(prompt.input, suggest, prompt, suggested, trigger_mode="always_last")
    private(suggested.click, lambda sample: sample[0], suggested, prompt)
    past = gr.State([], time_to_live=KEPT_S)
    with gr.Tabs() as controls.tabs:
        pictures, chosen, near = tabs.pictures(controls)
        tabs.variations(controls, chosen, near)
        tabs.change_words(controls, examples)
        tabs.film(controls, examples)
        if controls.uploads.can_project:
            tabs.your_picture(controls)
        if controls.uploads.can_enlarge:
            tabs.enlarge(controls)
        if studio.captioner is not None:
            tabs.caption(controls)
        history = tabs.history()

    def seed_for(seed: float, randomise: bool) -> tuple[Any, Any]:
        return (new_seed() if randomise else seed), gr.Tabs(selected="pictures")

    def remember(draws: list[list[Any]], prompt: str, seed: float) -> tuple[Any, ...]:
        draws = [[prompt, int(seed)], *(each for each in draws if each != [prompt, int(seed)])][:_HISTORY]
        return draws, gr.Dataset(samples=draws), seed

    def recall(sample: list[Any]) -> tuple[Any, ...]:
        return *sample, gr.Tabs(selected="pictures")

    drawn_with = [prompt, *controls.how, controls.number, controls.refine]

    def draw_after(event: Any, api_name: str) -> None:
        drawn = controls.on(event.then, studio.draw, drawn_with, pictures, api_name)
        private(drawn.success, remember, [past, prompt, controls.seed], [past, history, chosen])

    def pressed(fn: Callable[..., Any], inputs: Any, outputs: Any, **more: Any) -> Any:
        return gr.on([go.click, prompt.submit], fn, inputs, outputs, **more)

    both = [controls.seed, controls.tabs]
    draw_after(private(pressed, seed_for, [controls.seed, controls.randomise], both), "draw")
    draw_after(private(again.click, lambda: seed_for(0, True), None, both), "")
    draw_after(private(history.click, recall, history, [prompt, *both]), "")


def _advanced(controls: Controls) -> None:
    """The settings of all tabs."""
    import gradio as gr

    model = controls.studio.model
    with gr.Accordion("Advanced", open=False):
        with gr.Row():
            controls.seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=130)
            controls.randomise = gr.Checkbox(False, label="New seed at each draw", min_width=130)
            controls.number = gr.Slider(1, MAX_IMAGES, 8, step=1, label="Number of images")
        with gr.Row():
            controls.truncation = gr.Slider(0, 1, 1, step=0.05, label="Truncation: less is more typical")
            # From 2 on, colours oversaturate and shapes break, so the slider ends below the command's 10.
            controls.guidance = gr.Slider(
                0, 3, 1, step=0.05, label="Guidance: more follows the prompt more closely"
            )
            controls.refine = gr.Slider(
                0,
                MAX_REFINE,
                model.refine_steps(None),
                step=10,
                label="Refine: more steps follow the prompt more closely and take longer; 0 is fast",
                visible=can_refine(model.generator),
            )
