"""The functions behind the page's buttons that start from an uploaded picture.

Axes: h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from imagen_pl.data.transforms import UNREADABLE, as_shown
from imagen_pl.demo.checks import (
    MAX_ENLARGED_SIDE,
    MAX_IMAGES,
    MAX_PROJECTION,
    check_given,
    check_length,
    check_number,
    check_prompt,
    check_seed,
)
from imagen_pl.demo.studio import Labelled, Studio
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import to_pil, to_uint8
from imagen_pl.inference.projection import drawn_with, project, projectable, psnr, reworded
from imagen_pl.inference.sampling_options import check_noise
from imagen_pl.inference.translation import translatable, translated
from imagen_pl.inference.upscaling import Upscaler, load_upscaler
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.pretrained.backbones import TimmBackbone
from imagen_pl.storage.model_paths import DESCRIPTION, RELEASED

UPSAMPLER = RELEASED / "upsampler"  # the one that ships

OnStep = Callable[[int], object]


class Uploads:
    """What can be done with a visitor's picture.

    Args:
        studio: the model, and where files go.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio, self.model = studio, studio.model

    @property
    def can_project(self) -> bool:
        return _accepted(projectable, self.model.generator)

    @property
    def can_translate(self) -> bool:
        return _accepted(translatable, self.model.generator)

    @property
    def can_enlarge(self) -> bool:
        """Whether there is an upsampler: the page's, the model itself, or the one that ships."""
        mine = self.model.generator.verb == "upscale"
        return mine or self.studio.upscaler is not None or (UPSAMPLER / DESCRIPTION).is_file()

    def caption(self, file: str | None) -> str:
        """The caption of an uploaded image."""
        if self.studio.captioner is None:
            raise UserError("this model has no captioner")
        return self.studio.captioner.caption(check_given(file))

    def enlarge(self, file: str | None, prompt: str, noise: float, seed: float) -> str:
        """A file of the picture, enlarged.

        Args:
            file: the picture.
            prompt: what it shows; "" if that is not known.
            noise: standard deviation of noise that is added first, 0 to 1.
            seed: of the noise.
        """
        given = check_given(file, MAX_ENLARGED_SIDE)
        prompt, seed = check_length(" ".join(str(prompt or "").split())), check_seed(seed)
        if noise is None:
            raise UserError("noise is missing: give a number from 0 to 1")
        noise = check_noise(noise)
        try:
            picture = as_shown(given)
        except UNREADABLE as error:
            raise UserError("the file cannot be read as a picture") from error
        large = self._upscaler.upscale(picture, prompt, noise, seed)
        return self.studio.save(large, {"prompt": prompt, "noise": noise, "seed": seed})

    def translate(
        self, file: str | None, domain: str, seed: float, num_images: float, like: str | None = None
    ) -> Labelled:
        """The picture, and translations of it to a domain.

        Args:
            file: the picture.
            domain: the domain's caption, as in training.
            seed: of the first style.
            num_images: number of translations; one with a picture for the style.
            like: a picture whose style they get; None takes styles of seeds.
        """
        image = self._read(file)
        domain, seed = check_prompt(domain, "style"), check_seed(seed)
        count = 1 if like else check_number(num_images, MAX_IMAGES)
        reference = self._read(like) if like else None
        shown = [(to_pil(to_uint8(image))[0], "yours")]
        for k in range(count):
            drawn = translated(self.model, image, domain, seed + k, reference)
            label = f"{domain}, in the style of the other" if like else f"{domain} (seed {seed + k})"
            shown.append((to_pil(to_uint8(drawn))[0], label))
        return [(self.studio.save(p, {"prompt": domain, "seed": seed}), label) for p, label in shown]

    def project(
        self,
        file: str | None,
        prompt: str,
        to: str,
        steps: float,
        seed: float,
        on_step: OnStep | None = None,
    ) -> Labelled:
        """The picture, what the model draws in its place, and that with other words.

        Args:
            file: the picture.
            prompt: what it shows.
            to: the changed words; "" leaves them out.
            steps: of the search.
            seed: of the search.
            on_step: called after each step with its number.
        """
        image, prompt = self._read(file), check_prompt(prompt)
        to = check_length(" ".join(str(to or "").split()), "changed prompt")
        steps, seed = check_number(steps, MAX_PROJECTION), check_seed(seed)
        generator, model = projectable(self.model.generator), self.model
        text = model.text_encoder.encode([prompt], model.device)
        # Compared as by `imagen-pl project`.
        backbone = TimmBackbone("efficientnet_lite0", max(64, model.resolution), [0, 1, 2, 3, 4])
        each_step = None if on_step is None else (lambda step, _drawn: on_step(step))
        styles = project(generator, image, text, model.growth, backbone, steps, seed=seed, on_step=each_step)
        found = drawn_with(generator, styles, text, model.growth)
        shown = [(image, "yours"), (found, f"{prompt}: {float(psnr(found, image)):.1f} dB")]
        if to:
            other = model.text_encoder.encode([to], model.device)
            changed = reworded(generator, styles, text, other, seed)
            shown.append((drawn_with(generator, changed, other, model.growth), to))
        facts = {"prompt": prompt, "to": to, "steps": steps, "seed": seed}
        return [(self.studio.save(to_pil(to_uint8(p))[0], facts), label) for p, label in shown]

    @cached_property
    def _upscaler(self) -> Upscaler:
        if self.model.generator.verb == "upscale":
            return Upscaler(self.model)
        return self.studio.upscaler or load_upscaler(UPSAMPLER, self.model.device)

    def _read(self, file: str | None) -> Float[Tensor, "1 _c h w"]:
        """A picture at the model's size, -1 to 1, decoded like its training images."""
        given = check_given(file)
        try:
            pixels = self.model.processing.decode(given, self.model.resolution)
        except UNREADABLE as error:
            raise UserError("the file cannot be read as a picture") from error
        return pixels[None].to(self.model.device).float() / 127.5 - 1


def _accepted(check: Callable[[Generator], object], generator: Generator) -> bool:
    """Whether a check of a generator does not raise UserError."""
    try:
        check(generator)
    except UserError:
        return False
    return True
