"""Losses of image-to-image translation, for a Translator (StarGAN v2, arXiv:1912.01865, section 2.2).

With x a source image of domain y, x' = G(x, s') its translation in the style s' and domain y', F the mapping
network and E the style encoder:

    cycle         |x - G(x', E(x, y))|
    style         |s' - E(x', y')|
    diversity    -|G(x, s1) - G(x, s2)|,    s1 = F(z1, y'), s2 = F(z2, y')

Mapping network and style encoder are parts of the generator, and each of these terms trains them with it in
one step. The paper trains them only in its first half-step, in which styles come from latents, and the
generator alone in the second, in which they come from reference images. Here one batch has rows of both
kinds, and no gradient flows into the styles of reference images.

Axes: b batch, r pixels.
"""

from __future__ import annotations

from math import ceil

import torch

from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, LossTerm, PerSample, check_share, mean_of_each
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.translator import Images, Translator
from imagen_pl.schedules import Schedule
from imagen_pl.types import TextFeatures


class TranslationLoss(LossTerm):
    """A term that needs a Translator.

    Args:
        generator_weight: factor in the generator's loss: a number, or a schedule of images seen.

    Attributes:
        needs_styles: whether it is without meaning where a domain has one style.
    """

    needs_styles: bool = False

    def __init__(self, generator_weight: float | Schedule = 1.0) -> None:
        super().__init__(0.0, generator_weight)

    def check_generator(self, generator: Generator) -> None:
        self._translator(generator)

    def _translator(self, generator: Generator | None) -> Translator:
        name = type(self).__name__
        if not isinstance(generator, Translator):
            raise UserError(
                f"model.losses: {name} needs a Translator, not {type(generator).__name__}: leave it out"
            )
        if self.needs_styles and generator.style_from == "domain":
            raise UserError(
                f"model.losses: {name} compares styles within a domain, and with style_from: domain a domain "
                "has one: leave it out"
            )
        return generator

    def _sources(self, inputs: LossInputs) -> tuple[Translator, Images, TextFeatures]:
        """The translator, the source images and their own domains."""
        if inputs.real_images is None or inputs.latents is None:
            raise ValueError(f"{type(self).__name__} needs inputs.real_images and inputs.latents")
        translator = self._translator(inputs.generator)
        return translator, *translator.sources(inputs.real_images, inputs.text)


class CycleConsistency(TranslationLoss):
    """A translation, translated back in the source's own domain and style, is the source (eq. 4).

    |x - G(x', E(x, y))|    mean absolute difference of the pixels, -1 to 1

    Args:
        generator_weight: factor in the generator's loss: a number (1 in StarGAN v2, 10 in StarGAN), or a
            schedule of images seen.
        every: translate back every nth row of a batch: 2 takes half of the time, and the mean is the same.
    """

    name = "cycle"

    def __init__(self, generator_weight: float | Schedule = 1.0, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"CycleConsistency.every {every} must be 1 or more")
        super().__init__(generator_weight)
        self.every = every

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        translator, sources, text = self._sources(inputs)
        some = slice(None, None, self.every)  # of the rows with styles of latents, and of references
        sources = sources[some]
        back = translator.translate(inputs.images[some], translator.style_of_image(sources, text[some]))
        return mean_of_each((back - sources).abs())


class StyleReconstruction(TranslationLoss):
    """The style encoder finds in a translation the style with which it was made (eq. 2).

    |s' - E(x', y')|    mean absolute difference of the entries, which have variance 1

    The wanted style gets no gradient, or mapping network and style encoder soon agree on one style for all
    latents. The paper prevents that by a hundredth of the learning rate for the mapping network.

    Args:
        generator_weight: factor in the generator's loss: a number (1 in the paper), or a schedule of images
            seen.
    """

    name = "style_reconstruction"
    needs_styles = True

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        translator, _, _ = self._sources(inputs)
        assert inputs.real_images is not None
        assert inputs.latents is not None
        with torch.no_grad():
            wanted = translator.batch_style(inputs.latents, inputs.real_images, inputs.text)
        found = translator.style_of_image(inputs.images, inputs.text)
        return mean_of_each((found - wanted).abs())


class StyleDiversity(TranslationLoss):
    """Two latents give two translations of one source that differ: minus their distance (eq. 3).

    -|G(x, F(z1, y')) - G(x, F(z2, y'))|    mean absolute difference of the pixels, -1 to 1

    It has no lower bound of its own, so its weight should fall to 0, as in the paper. The second translation
    is made without a gradient, which by symmetry halves the term and saves half of its cost.

    Args:
        generator_weight: factor in the generator's loss: a number, or a schedule of images seen, as Linear
            from 1 to 0.
        share: share of the rows with a style from a latent that are translated a second time, above 0 to 1.
    """

    name = "style_diversity"
    needs_styles = True

    def __init__(self, generator_weight: float | Schedule = 1.0, share: float = 1.0) -> None:
        check_share(self, share)
        super().__init__(generator_weight)
        self.share = share

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        translator, sources, _ = self._sources(inputs)
        assert inputs.latents is not None
        n = ceil(self.share * translator.latent_rows(len(sources)))
        if n == 0:
            raise UserError("StyleDiversity needs styles from latents: lower Translator.reference_share")
        with torch.no_grad():
            other = torch.randn_like(inputs.latents[:n])
            again = translator.translate(sources[:n], translator.style_of_latent(other, inputs.text[:n]))
        return -mean_of_each((inputs.images[:n] - again).abs())


class IdentityTranslation(TranslationLoss):
    """A real image, translated to its own domain and style, is itself (CycleGAN, arXiv:1703.10593, 5.2).

    |x - G(x, E(x, y))|    mean absolute difference of the pixels, -1 to 1

    Not in StarGAN v2. It teaches early how to draw what the encoder has read.

    Args:
        generator_weight: factor in the generator's loss: a number, or a schedule of images seen.
        share: share of a batch that is translated for it, above 0 to 1.
    """

    name = "identity"

    def __init__(self, generator_weight: float | Schedule = 1.0, share: float = 0.5) -> None:
        check_share(self, share)
        super().__init__(generator_weight)
        self.share = share

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        translator, _, _ = self._sources(inputs)
        assert inputs.real_images is not None
        n = ceil(self.share * len(inputs.images))
        images, text = inputs.real_images[:n], inputs.text[:n]
        same = translator.translate(images, translator.style_of_image(images, text))
        return mean_of_each((same - images).abs())
