"""A model and the upsampler that enlarges its pictures, as the command line names them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imagen_pl.cli.drawing import draw_with_progress, provenance
from imagen_pl.cli.open_model import UPSAMPLER, check_upscaler, open_model, open_upscaler
from imagen_pl.inference.sampling_options import SamplingOptions

if TYPE_CHECKING:
    from PIL import Image

    from imagen_pl.inference.pipeline import TextToImage
    from imagen_pl.inference.upscaling import Upscaler


@dataclass(frozen=True)
class Cascade:
    """Draws pictures and enlarges them.

    model: draws.
    upscaler: enlarges what it draws; None leaves the pictures as they are.
    name: of the model, as the user gave it.
    upscaler_name: of the upscaler, likewise.
    options: of sampling.
    noise: standard deviation of the noise that is added to pictures before; pixels are -1 to 1.
    """

    model: TextToImage
    upscaler: Upscaler | None
    name: str
    upscaler_name: str
    options: SamplingOptions
    noise: float = 0.0

    def draw(self, pairs: list[tuple[str, int]]) -> Iterator[Image.Image]:
        """Pictures for pairs of a prompt and a seed, with a progress bar."""
        return self.enlarge(draw_with_progress(self.model, pairs, self.options), pairs)

    def enlarge(
        self, pictures: Iterable[Image.Image], pairs: Iterable[tuple[str, int]]
    ) -> Iterator[Image.Image]:
        """Pictures as the upscaler enlarges them, or as they are without one.

        Args:
            pictures: drawn by the model.
            pairs: for each, what it shows ("" if that is not known) and the seed of the noise.
        """
        for picture, (prompt, seed) in zip(pictures, pairs, strict=False):
            if self.upscaler is None:
                yield picture
            else:
                yield self.upscaler.upscale(picture, prompt, self.noise, seed)

    def about(self) -> dict[str, Any]:
        """How pictures are drawn, besides prompt and seed; stored in their files."""
        about = provenance(self.model, self.name, self.options)
        if self.upscaler is None:
            return about
        return {**about, **self.enlarged()}

    def enlarged(self) -> dict[str, Any]:
        """How pictures are enlarged; stored in their files."""
        if self.upscaler is None:
            return {}
        return {"upscaler": self.upscaler_name, "upscaler_noise": self.noise}


def open_cascade(arguments: argparse.Namespace, options: SamplingOptions, noise: float = 0.0) -> Cascade:
    """The models that the arguments of `add_model_argument` and `add_upscaler_argument` name.

    Raises:
        UserError: there is no such model, or one of another kind.
    """
    check_upscaler(arguments.upscaler)
    model = open_model(arguments.model, arguments.device, arguments.resolution)
    upscaler = open_upscaler(arguments.upscaler, model, arguments.device)
    return Cascade(model, upscaler, arguments.model, arguments.upscaler or UPSAMPLER, options, noise)
