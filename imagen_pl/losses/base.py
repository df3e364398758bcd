"""The interface of a loss term, and the list of terms that a run adds to the adversarial loss.

    L_D = adversarial + penalties + sum of discriminator_weight * term(real images)
    L_G = adversarial + sum of generator_weight * term(generated images)

A term's own parameters, such as a projection head, are trained in the discriminator step, or in the step that
it says (`trained_in`).

Axes: b batch, h w pixels, z latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.models.generators.base import Generator
from imagen_pl.schedules import Schedule
from imagen_pl.types import Growth, TextFeatures

PerSample = Float[Tensor, " b"]
Step = Literal["discriminator", "generator"]


@dataclass
class LossInputs:
    """What a term computes its loss from: real images in the discriminator step, else generated ones.

    images: -1 to 1, before augmentation, faded like the newest block; of a generator of latents, decoded if a
        term of the step `reads_pixels`.
    features: the discriminator's features of the augmented images.
    text: the features of their captions.
    growth: how far the networks have grown.
    captions: the captions themselves.
    real_features: generator step only: the discriminator's features of the real images with the same
        captions, if a term `needs_pairs`; with `share_passes` from before the discriminator's last step.
    real_images: generator step only: the real images with the same captions, -1 to 1, faded alike.
    generator: generator step only: the network that generated the images.
    latents: generator step only: the latents from which it generated them.
    encode: encodes other captions of the training set; None where there is no encoder.
    """

    images: Float[Tensor, "b _c _h _w"]
    features: ImageFeatures
    text: TextFeatures
    growth: Growth
    captions: list[str] = field(default_factory=list)
    real_features: ImageFeatures | None = None
    real_images: Float[Tensor, "b _c h w"] | None = None
    generator: Generator | None = None
    latents: Float[Tensor, "b z"] | None = None
    encode: Callable[[list[str]], TextFeatures] | None = None


class LossTerm(nn.Module, ABC):
    """One term of the objective.

    Args:
        discriminator_weight: factor in the discriminator's loss, on real images: a number, or a schedule of
            images seen; 0 skips the term.
        generator_weight: factor in the generator's loss, on generated images, likewise.
        from_resolution: resolution, px, below which the term is skipped.

    Attributes:
        name: its losses are logged as train/d_NAME and train/g_NAME.
        needs_pairs: whether the generator step compares generated images with the real images of the same
            captions.
        needs_groups: whether the term compares the images of a caption, so that a batch must have several:
            data.pictures_per_caption.
        needs_plain_images: whether it gives the discriminator images of its own, one alone of each sample.
        reads_pixels: whether it reads `inputs.images` in the generator step; where no term does, a generator
            of latents need not decode them.
        trained_in: the step in which the term's own parameters, if any, are trained.
        generator_every: the generator step computes the term at every nth step, n times as strong.
    """

    name: str
    needs_pairs: bool = False
    needs_groups: bool = False
    needs_plain_images: bool = False
    reads_pixels: bool = True
    trained_in: Step = "discriminator"
    generator_every: int = 1

    def __init__(
        self,
        discriminator_weight: float | Schedule = 1.0,
        generator_weight: float | Schedule = 0.0,
        from_resolution: int = 4,
    ) -> None:
        super().__init__()
        self.discriminator_weight, self.generator_weight = discriminator_weight, generator_weight
        self.from_resolution = from_resolution
        self._notes: dict[str, Tensor] = {}

    def weight(self, step: Step, images_seen: int, resolution: int) -> float:
        """The term's factor in a step after `images_seen` images; at 0 the term is not computed."""
        if resolution < self.from_resolution:
            return 0.0
        weight = self.discriminator_weight if step == "discriminator" else self.generator_weight
        return weight(images_seen) if callable(weight) else weight

    def prepare(self, captions: Callable[[], Iterable[str]]) -> None:
        """Prepare the term, for example fit its vocabulary, before the first batch and before weights load.

        Args:
            captions: returns captions of the training set: all of them, or the first ones of a stream.
        """

    def check(self, discriminator: Discriminator) -> None:
        """Raise ValueError if the term does not fit the discriminator, naming the argument to change."""

    def check_generator(self, generator: Generator) -> None:
        """Raise UserError if the term cannot be used with the generator."""

    @abstractmethod
    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        """The unweighted loss of each image with its own caption, or of the images that the term samples.

        Args:
            discriminator: the discriminator; its weights are frozen in the generator step.
            adversarial: the adversarial loss of the run.
            inputs: images, captions and their features.
        """

    def note(self, name: str, value: Tensor) -> None:
        """Log a number beside the loss, for example train/d_rotation_accuracy for "accuracy"."""
        self._notes[name] = value.detach()

    def take_notes(self) -> dict[str, Tensor]:
        """The numbers noted since the last call, by name."""
        notes, self._notes = self._notes, {}
        return notes


def mean_of_each(x: Float[Tensor, "b ..."]) -> PerSample:
    """The mean over all axes but the first; unlike `flatten`, it does not copy channels_last maps."""
    return x.mean(tuple(range(1, x.ndim)))


def check_size(term: LossTerm, argument: str, given: int, expected: int, whose: str) -> None:
    """Raise ValueError unless a constructor argument of a term equals the networks' own size."""
    if given != expected:
        raise ValueError(
            f"{type(term).__name__}.{argument} is {given}, but {whose} is {expected}: set it to {expected}"
        )


def check_draws_captions(term: LossTerm, generator: Generator) -> None:
    """Raise UserError if a term that calls the generator with captions alone has one that reads images."""
    if generator.reads_images:
        raise UserError(
            f"model.losses: {type(term).__name__} draws images from captions alone, which a "
            f"{type(generator).__name__} cannot do: leave it out"
        )


def check_share(term: LossTerm, share: float) -> None:
    """Raise ValueError unless a term's `share` of a batch is above 0 and at most 1."""
    if not 0 < share <= 1:
        raise ValueError(f"{type(term).__name__}.share {share} must be above 0 and at most 1")


class SeparatelyTrainedLoss(LossTerm):
    """A term whose own network is trained on real images in a third step, and is frozen in the other two.

    Args:
        optimizer: makes the network's optimizer, for example `torch.optim.AdamW`.
        generator_weight: factor in the generator's loss, on generated images: a number, or a schedule of
            images seen; 0 skips the term.
        from_resolution: resolution, px, below which the generator's loss skips the term.
        every: train the network on every nth batch.

    Attributes:
        needs_features: whether the network's own step reads the discriminator's features; False saves
            computing them.
    """

    needs_features: bool = True

    def __init__(
        self,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        generator_weight: float | Schedule,
        from_resolution: int = 4,
        every: int = 1,
    ) -> None:
        if every < 1:
            raise ValueError(f"every {every} must be 1 or more")
        super().__init__(0.0, generator_weight, from_resolution)
        self.optimizer, self.every = optimizer, every

    @abstractmethod
    def training_loss(self, inputs: LossInputs) -> PerSample:
        """The loss of the term's network on real images; `inputs.features` carry no gradient."""


class LossTerms(nn.ModuleList):
    """All loss terms of a run.

    Args:
        terms: the terms, in the order in which their losses are added.

    Raises:
        ValueError: two terms have the same name, or more than one is trained separately.
    """

    def __init__(self, terms: Iterable[LossTerm]) -> None:
        super().__init__(terms)
        names = [term.name for term in self]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"model.losses has two terms named {', '.join(twice)}: keep one of each")
        separate = [type(term).__name__ for term in self if isinstance(term, SeparatelyTrainedLoss)]
        if len(separate) > 1:
            raise ValueError(f"model.losses has {', '.join(separate)}, but one may train a network: keep one")

    def __iter__(self) -> Iterator[LossTerm]:
        return super().__iter__()  # type: ignore[return-value]

    @property
    def separately_trained(self) -> SeparatelyTrainedLoss | None:
        """The term whose network is trained in a step of its own."""
        return next((term for term in self if isinstance(term, SeparatelyTrainedLoss)), None)

    def parameters_trained_in(self, step: Step) -> Iterator[nn.Parameter]:
        """The terms' parameters that are trained in this step."""
        own = (
            term for term in self if not isinstance(term, SeparatelyTrainedLoss) and term.trained_in == step
        )
        return (p for term in own for p in term.parameters())

    def need_pairs(self, images_seen: int, resolution: int) -> bool:
        """Whether the generator step must compute the discriminator's features of the real images."""
        return any(term.needs_pairs and term.weight("generator", images_seen, resolution) for term in self)

    def need_pixels(self, images_seen: int, resolution: int) -> bool:
        """Whether a term reads the generated images themselves in the generator step."""
        return any(term.reads_pixels and term.weight("generator", images_seen, resolution) for term in self)

    def check(self, generator: Generator, discriminator: Discriminator) -> None:
        """Raise ValueError or UserError if a term does not fit the networks."""
        for term in self:
            term.check(discriminator)
            term.check_generator(generator)
            if not term.needs_plain_images:
                continue
            name, reader = type(term).__name__, type(discriminator).__name__
            if generator.draws_latents:
                raise UserError(
                    f"model.losses: {name} gives the discriminator images, but it reads latents of an "
                    "autoencoder: leave the term out"
                )
            if discriminator.images_per_sample > 1:
                raise UserError(
                    f"model.losses: {name} gives the discriminator single images, but {reader} reads "
                    f"{discriminator.images_per_sample} of each sample: leave the term out, or set the "
                    "generator's noise to [0.0] and images to 1"
                )

    def weighted(
        self,
        step: Step,
        discriminator: Discriminator,
        adversarial: AdversarialLoss,
        inputs: LossInputs,
        images_seen: int,
        generator_steps: int = 0,
    ) -> tuple[dict[str, PerSample], dict[str, Tensor]]:
        """The weighted losses of all terms with a weight in this step, and their logged values, by name."""
        losses: dict[str, PerSample] = {}
        notes: dict[str, Tensor] = {}
        for term in self:
            weight = term.weight(step, images_seen, inputs.growth.resolution)
            every = term.generator_every if step == "generator" else 1
            if weight and generator_steps % every == 0:
                name = f"{step[0]}_{term.name}"
                losses[name] = weight * every * term(discriminator, adversarial, inputs)
                notes |= {f"{name}_{key}": value for key, value in term.take_notes().items()}
        return losses, notes
