"""The demo page: images for prompts, in a browser (Gradio)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from imagen_pl.data.sources.declaration import declaration_of
from imagen_pl.errors import UserError
from imagen_pl.imaging.animation import write_animation
from imagen_pl.imaging.grids import save_picture, size_text, strip
from imagen_pl.imaging.svg import save_svg
from imagen_pl.inference.interpolation import interpolate
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.inference.refinement import can_refine
from imagen_pl.inference.retrieval_captioning import AnyCaptioner
from imagen_pl.inference.sampling_options import (
    check_guidance,
    check_refine,
    check_truncation,
)
from imagen_pl.inference.upscaling import Upscaler

MAX_PROMPT = 300  # letters
MAX_IMAGES = 16
MAX_FRAMES = 48
MAX_REFINE = 40
MAX_UPLOAD_MB = 10
MAX_UPLOAD_PIXELS = 25_000_000
_SHOWN = 256  # px: small pictures are enlarged, pixel by pixel
_KEPT_S = 3600
# On phones, galleries have two columns, and show all images without scrolling.
CSS = """
@media (max-width: 640px) { .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; } }
/* Gradio cuts a gallery at 55% of the window's height, which hides half of the second row. */
.grid-wrap { max-height: none !important; }
"""
# Behind transparent pictures, as image viewers show them.
CHECKERBOARD = """
.grid-wrap img, .preview img, .thumbnail-item img
  { background: repeating-conic-gradient(#ddd 0 25%, #fff 0 50%) 0 0 / 16px 16px; }
"""
_EXAMPLES = ("red heart, fluent style", "grinning face, noto style", "blue square, twemoji style")


class Studio:
    """The functions behind the page's buttons: they check their input and return files.

    Args:
        model: generates the images.
        name: of the model, for the files' metadata.
        captioner: captions uploaded images; None leaves that tab out.
        folder: for the files, which are deleted after an hour.
        upscaler: enlarges the images; None shows their pixels.
    """

    def __init__(
        self,
        model: TextToImage,
        name: str,
        captioner: AnyCaptioner | None,
        folder: Path,
        upscaler: Upscaler | None = None,
    ) -> None:
        self.model, self.name, self.captioner, self.folder = model, name, captioner, folder
        self.upscaler = upscaler

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the images, px, enlarged if there is an upscaler."""
        factor = 1 if self.upscaler is None else self.upscaler.factor
        width, height = self.model.size
        return width * factor, height * factor

    def draw(
        self,
        prompt: str,
        seed: float,
        truncation: float,
        guidance: float,
        num_images: float,
        refine: float | None = None,
    ) -> list[tuple[str, str]]:
        """Files of images, each with its label; refine None takes the model's default."""
        prompt, seed, count = check_prompt(prompt), check_seed(seed), check_number(num_images, MAX_IMAGES)
        truncation, guidance = check_truncation(truncation), check_guidance(guidance)
        steps = self.model.refine_steps(None if refine is None else check_refine(refine))
        if steps > MAX_REFINE:
            raise UserError(f"refine {steps} is more than this page allows, {MAX_REFINE}")
        pictures = self.model.sample(prompt, seed, count, truncation, guidance, steps)
        labels = [f"seed {seed + k}" for k in range(count)]
        rows = zip(pictures, range(seed, seed + count), labels, strict=True)
        return [
            (self._kept(picture, prompt, k, truncation, guidance, steps), label) for picture, k, label in rows
        ]

    def vector(self, drawn: Sequence[tuple[str, Any]] | None) -> list[str]:
        """SVG files of the pictures that the page shows: files of `draw`, each with its label."""
        if not drawn:
            raise UserError("draw pictures first")
        if len(drawn) > MAX_IMAGES:
            raise UserError(f"{len(drawn)} pictures are more than this page converts, {MAX_IMAGES}")
        files = []
        for shown, _ in drawn:
            check_upload(Path(shown))
            with Image.open(shown) as picture:
                facts = {str(name): fact for name, fact in picture.info.items() if isinstance(fact, str)}
                # Without an upscaler the page repeats each pixel.
                original = picture.resize(self.size, Image.Resampling.NEAREST)
            files.append(self._file(".svg"))
            save_svg(original, files[-1], facts)
        return [str(file) for file in files]

    def edit(
        self, prompt: str, to: str, seed: float, truncation: float, guidance: float
    ) -> list[tuple[str, str]]:
        """Images of the same latents with either prompt."""
        prompts = (check_prompt(prompt), check_prompt(to))
        seed, truncation = check_seed(seed), check_truncation(truncation)
        pairs = [(words, seed + k) for k in range(4) for words in prompts]
        steps = self.model.refine_steps(None)
        drawn = self.model.draw(pairs, truncation, check_guidance(guidance), steps)
        return [
            (self._kept(picture, words, k, truncation, guidance, steps), f"{words} (seed {k})")
            for picture, (words, k) in zip(drawn, pairs, strict=True)
        ]

    def film(
        self, first: str, second: str, seed: float, truncation: float, guidance: float, frames: float
    ) -> str:
        """A file of an animation from one prompt to the other and back."""
        seed = check_seed(seed)
        keyframes = [(check_prompt(first), seed), (check_prompt(second), seed)]
        frames, truncation = check_number(frames, MAX_FRAMES), check_truncation(truncation)
        shown = interpolate(self.model, keyframes, frames, True, truncation, check_guidance(guidance))
        file = self._file(".gif")
        write_animation(shown, file, fps=12, loop=True)
        return str(file)

    def caption(self, file: str | None) -> str:
        """The caption of an uploaded image."""
        if self.captioner is None:
            raise UserError("this model has no captioner")
        if not file:
            raise UserError("choose a picture first")
        check_upload(Path(file))
        return self.captioner.caption(Path(file))

    def _kept(
        self,
        picture: Image.Image,
        prompt: str,
        seed: int,
        truncation: float,
        guidance: float,
        refine: int,
    ) -> str:
        file = self._file(".png")
        drawn = {"truncation": truncation, "guidance": guidance, "refine": refine}
        facts = {"prompt": prompt, "seed": seed, **drawn, "model": self.name}
        if self.upscaler is not None:
            picture = self.upscaler.upscale(picture, prompt)
        save_picture(strip([picture], _SHOWN), file, facts)
        return str(file)

    def _file(self, ending: str) -> Path:
        """A new file name that cannot be guessed; deletes files older than an hour."""
        for old in self.folder.iterdir():
            if time.time() - old.stat().st_mtime > _KEPT_S:
                old.unlink(missing_ok=True)
        return self.folder / f"{secrets.token_hex(12)}{ending}"


# ---------------------------------------------------------------------- checks of the input


def check_prompt(prompt: object) -> str:
    """The prompt. Raises UserError if it is empty or too long."""
    text = " ".join(str(prompt or "").split())
    if not text:
        raise UserError("write a prompt first")
    if len(text) > MAX_PROMPT:
        raise UserError(f"the prompt has {len(text)} letters: use {MAX_PROMPT} at most")
    return text


def check_seed(seed: float | None) -> int:
    """The seed. Raises UserError if it is not a whole number from 0 up."""
    if seed is None or seed != int(seed) or not 0 <= seed < 2**31:
        raise UserError(f"seed {seed} is not a whole number from 0 to {2**31 - 1}")
    return int(seed)


def check_number(number: float | None, most: int) -> int:
    """The number. Raises UserError if it is not between 1 and `most`."""
    if number is None or not 1 <= number <= most:
        raise UserError(f"{number} is not between 1 and {most}")
    return int(number)


def check_upload(file: Path) -> None:
    """Check an image by its file size and header, before it is decoded.

    Raises:
        UserError: the file is too large, or not an image.
    """
    if file.stat().st_size > MAX_UPLOAD_MB * 2**20:
        raise UserError(f"the file is larger than {MAX_UPLOAD_MB} MB")
    try:
        with Image.open(file) as opened:
            width, height = opened.size
    except Image.DecompressionBombError:
        raise UserError(f"the picture has more than {MAX_UPLOAD_PIXELS // 10**6} million pixels") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError("the file cannot be read as a picture") from error
    if width * height > MAX_UPLOAD_PIXELS:
        raise UserError(
            f"the picture has {width} x {height} pixels: use {MAX_UPLOAD_PIXELS // 10**6} million at most"
        )


# ---------------------------------------------------------------------- the page


def example_prompts(model: TextToImage) -> Sequence[str]:
    """Three training captions of the model, if they may be published; else prompts for the emoji."""
    captions = [c for c in model.description.get("captions") or () if 0 < len(c) <= MAX_PROMPT]
    source = declaration_of(model.description.get("data") or {})
    if not captions or source.styles or not source.captions_may_be_published:
        return _EXAMPLES
    return captions[:: max(1, len(captions) // 3)][:3]


def build_page(studio: Studio, examples: Sequence[str] = _EXAMPLES) -> Any:
    """The page, as gradio.Blocks.

    Args:
        studio: functions behind the buttons.
        examples: prompts to click on.
    """
    import gradio as gr

    def show_user_errors(work: Callable[..., Any]) -> Callable[..., Any]:
        """Show a UserError as a message on the page."""

        def run(*given: Any) -> Any:
            try:
                return work(*given)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return run

    def new_seed() -> int:
        return secrets.randbelow(2**31)

    size = size_text(studio.size)
    with gr.Blocks(title="imagen_pl", analytics_enabled=False) as page:
        gr.Markdown(f"# imagen_pl\n\n{studio.name}, {size}. A picture is decided by its prompt and its seed.")
        with gr.Row():
            # Narrow enough to stand side by side on a phone.
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, scale=2, min_width=130)
            dice = gr.Button("New seed", scale=1, min_width=130)
            with gr.Column(scale=3):
                truncation = gr.Slider(0, 1, 1, step=0.05, label="Truncation: less is more typical")
                # From 2 on, colours oversaturate and shapes break, so the slider ends below the command's 10.
                guidance = gr.Slider(
                    0, 3, 1, step=0.05, label="Guidance: more follows the prompt more closely"
                )
        dice.click(new_seed, outputs=seed, show_progress="hidden")
        with gr.Tab("Draw"):
            prompt = gr.Textbox(label="Prompt", value=examples[0], max_length=MAX_PROMPT, autofocus=True)
            # Before the sliders: on a phone the first screen ends below them.
            go = gr.Button("Draw", variant="primary")
            with gr.Row():
                number = gr.Slider(1, MAX_IMAGES, 8, step=1, label="Number of images")
                refine = gr.Slider(
                    0,
                    MAX_REFINE,
                    studio.model.refine_steps(None),
                    step=10,
                    label="Refine: more steps follow the prompt more closely and take longer; 0 is fast",
                    visible=can_refine(studio.model.generator),
                )
            pictures = gr.Gallery(
                label="Pictures",
                columns=4,
                height="auto",
                object_fit="contain",
                format="png",
                type="filepath",
            )
            gr.Examples([[text] for text in examples], inputs=[prompt], cache_examples=False)
            for event in (go.click, prompt.submit):
                inputs = [prompt, seed, truncation, guidance, number, refine]
                event(show_user_errors(studio.draw), inputs, pictures, api_name="draw")
            as_svg = gr.Button("Convert to SVG")
            traced = gr.File(label="SVG", file_count="multiple", interactive=False)
            as_svg.click(show_user_errors(studio.vector), pictures, traced, api_name="vector")
        with gr.Tab("Change words"):
            before = gr.Textbox(label="Prompt", value=examples[0], max_length=MAX_PROMPT)
            after = gr.Textbox(label="Changed", value=examples[-1], max_length=MAX_PROMPT)
            go = gr.Button("Draw both", variant="primary")
            sheet = gr.Gallery(
                label="Left before, right after", columns=2, height="auto", object_fit="contain", format="png"
            )
            go.click(
                show_user_errors(studio.edit),
                [before, after, seed, truncation, guidance],
                sheet,
                api_name="edit",
            )
        with gr.Tab("From one to the other"):
            first = gr.Textbox(label="From", value=examples[0], max_length=MAX_PROMPT)
            second = gr.Textbox(label="To", value=examples[-1], max_length=MAX_PROMPT)
            frames = gr.Slider(4, MAX_FRAMES, 16, step=1, label="Frames each way")
            go = gr.Button("Film", variant="primary")
            label = f"Film, {size_text(studio.model.size)}"
            film = gr.Image(label=label, type="filepath", interactive=False)
            inputs = [first, second, seed, truncation, guidance, frames]
            go.click(show_user_errors(studio.film), inputs, film, api_name="interpolate")
        if studio.captioner is not None:
            with gr.Tab("Caption"):
                # Not gr.Image, which decodes uploads before `check_upload`.
                upload = gr.File(label="A picture", file_types=["image"], type="filepath")
                go = gr.Button("What does it show?", variant="primary")
                words = gr.Textbox(label="Caption", interactive=False)
                go.click(show_user_errors(studio.caption), [upload], words, api_name="caption")
    page.queue(max_size=32, default_concurrency_limit=1)
    return page
