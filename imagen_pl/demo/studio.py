"""The functions behind the page's buttons that draw from prompts."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from imagen_pl.demo.checks import (
    MAX_FRAMES,
    MAX_IMAGES,
    MAX_REFINE,
    check_number,
    check_prompt,
    check_seed,
    check_share,
    check_upload,
)
from imagen_pl.errors import UserError
from imagen_pl.imaging.animation import write_animation
from imagen_pl.imaging.grids import save_picture, strip
from imagen_pl.imaging.svg import save_svg
from imagen_pl.inference.interpolation import interpolate
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.inference.retrieval_captioning import AnyCaptioner
from imagen_pl.inference.sampling_options import check_guidance, check_refine, check_truncation
from imagen_pl.inference.upscaling import Upscaler
from imagen_pl.inference.variations import variations

KEPT_S = 3600
_SHOWN = 256  # px: small pictures are enlarged, pixel by pixel
_VARIATIONS = 8
_EDITED = 4

Labelled = list[tuple[str, str]]  # files of pictures, each with its label


@dataclass(frozen=True)
class _Settings:
    """How pictures are drawn; checked."""

    seed: int
    truncation: float
    guidance: float
    refine: int

    def drawing(self) -> tuple[float, float, int]:
        """As `TextToImage.sample` takes them after prompt, seed and number."""
        return self.truncation, self.guidance, self.refine


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
    def draws(self) -> bool:
        """Whether the model draws from prompts alone, without a picture."""
        return not self.model.generator.reads_images

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
    ) -> Labelled:
        """Images of a prompt, with seeds from `seed` on; refine None takes the model's default."""
        prompt, count = check_prompt(prompt), check_number(num_images, MAX_IMAGES)
        how = self._settings(seed, truncation, guidance, refine)
        pictures = self.model.sample(prompt, how.seed, count, *how.drawing())
        seeds = range(how.seed, how.seed + count)
        return [
            (self._kept(picture, prompt, k, how), f"seed {k}")
            for picture, k in zip(pictures, seeds, strict=True)
        ]

    def vary(
        self,
        prompt: str,
        seed: float,
        truncation: float,
        guidance: float,
        amount: float,
        refine: float | None = None,
    ) -> Labelled:
        """The picture of a prompt and a seed, and seven near it: amount 0 is the same, 1 another seed."""
        prompt, amount = check_prompt(prompt), check_share(amount, "amount")
        how = self._settings(seed, truncation, guidance, refine)
        drawn = variations(self.model, prompt, how.seed, _VARIATIONS, amount, *how.drawing())
        labels = [f"seed {how.seed}", *(f"variation {k}" for k in range(1, _VARIATIONS))]
        files = [self._kept(drawn[0], prompt, how.seed, how)]
        for k, picture in enumerate(drawn[1:], 1):
            files.append(self._kept(picture, prompt, how.seed, how, {"variation": k, "amount": amount}))
        return list(zip(files, labels, strict=True))

    def restyle(
        self,
        prompt: str,
        seed: float,
        truncation: float,
        guidance: float,
        styles: Sequence[str],
        refine: float | None = None,
    ) -> Labelled:
        """The prompt's subject, up to its first comma, with each style word and the same latent."""
        subject = check_prompt(prompt).partition(",")[0].strip()
        how = self._settings(seed, truncation, guidance, refine)
        prompts = [check_prompt(f"{subject}, {style}") for style in styles]
        drawn = self.model.draw([(words, how.seed) for words in prompts], *how.drawing())
        rows = zip(drawn, prompts, styles, strict=True)
        return [(self._kept(picture, words, how.seed, how), style) for picture, words, style in rows]

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
            files.append(self.new_file(".svg"))
            save_svg(original, files[-1], facts)
        return [str(file) for file in files]

    def edit(
        self,
        prompt: str,
        to: str,
        seed: float,
        truncation: float,
        guidance: float,
        refine: float | None = None,
    ) -> Labelled:
        """Images of the same latents with either prompt."""
        prompts = (check_prompt(prompt), check_prompt(to, "changed prompt"))
        how = self._settings(seed, truncation, guidance, refine)
        pairs = [(words, how.seed + k) for k in range(_EDITED) for words in prompts]
        drawn = self.model.draw(pairs, *how.drawing())
        return [
            (self._kept(picture, words, k, how), f"{words} (seed {k})")
            for picture, (words, k) in zip(drawn, pairs, strict=True)
        ]

    def film(
        self,
        first: str,
        second: str,
        seed: float,
        truncation: float,
        guidance: float,
        frames: float,
        refine: float = 0,
    ) -> str:
        """A file of an animation from one prompt to the other and back."""
        how = self._settings(seed, truncation, guidance, refine)
        keyframes = [(check_prompt(first), how.seed), (check_prompt(second, "second prompt"), how.seed)]
        shown = interpolate(self.model, keyframes, check_number(frames, MAX_FRAMES), True, *how.drawing())
        file = self.new_file(".gif")
        write_animation(shown, file, fps=12, loop=True)
        return str(file)

    def save(self, picture: Image.Image, facts: dict[str, Any]) -> str:
        """A PNG file of a picture, at least 256 px wide, with facts about it."""
        file = self.new_file(".png")
        save_picture(strip([picture], _SHOWN), file, {**facts, "model": self.name})
        return str(file)

    def new_file(self, ending: str) -> Path:
        """A new file name that cannot be guessed; deletes files older than an hour."""
        for old in self.folder.iterdir():
            if old.is_file() and time.time() - old.stat().st_mtime > KEPT_S:
                old.unlink(missing_ok=True)
        return self.folder / f"{secrets.token_hex(12)}{ending}"

    def _settings(self, seed: float, truncation: float, guidance: float, refine: float | None) -> _Settings:
        """The settings of every function that draws. Raises UserError if one is out of range."""
        steps = self.model.refine_steps(None if refine is None else check_refine(refine))
        if steps > MAX_REFINE:
            raise UserError(f"refine {steps} is more than this page allows, {MAX_REFINE}")
        return _Settings(check_seed(seed), check_truncation(truncation), check_guidance(guidance), steps)

    def _kept(
        self,
        picture: Image.Image,
        prompt: str,
        seed: int,
        how: _Settings,
        more: dict[str, Any] | None = None,
    ) -> str:
        """A file of a picture, enlarged if there is an upscaler."""
        if self.upscaler is not None:
            picture = self.upscaler.upscale(picture, prompt)
        drawn = {"truncation": how.truncation, "guidance": how.guidance, "refine": how.refine}
        return self.save(picture, {"prompt": prompt, "seed": seed, **drawn, **(more or {})})
