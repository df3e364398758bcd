"""What the terms of the objective share: the images of a step as they see them, and when they count.

L = L_D + L_G + sum of terms. In the discriminator's step a term is shown real images and teaches the
discriminator; in the generator's step it is shown generated ones and teaches the generator. What a term
itself has to learn, it learns with the discriminator.

Axes: b batch, r pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.models.discriminators.base import Discriminator, ImageFeatures
from imagen_pl.schedules import Schedule
from imagen_pl.types import Growth, TextFeatures

PerSample = Float[Tensor, " b"]
Step = Literal["discriminator", "generator"]


@dataclass
class LossInputs:
    """The images of a step: real ones in the discriminator's, generated ones in the generator's.

    images: -1 to 1, before augmentation, faded as the growth says.
    features: what the discriminator saw in them, after augmentation.
    text: their captions' features.
    growth: how far the networks have grown.
    captions: their captions' words.
    paired: in the generator's step, what the discriminator saw in the real images of the same
        captions, where a term `needs_pairs`.
    paired_images: in the generator's step, the real images of the same captions, -1 to 1, faded likewise.
    """

    images: Float[Tensor, "b 3 r r"]
    features: ImageFeatures
    text: TextFeatures
    growth: Growth
    captions: list[str] = field(default_factory=list)
    paired: ImageFeatures | None = None
    paired_images: Float[Tensor, "b 3 r r"] | None = None


class LossTerm(nn.Module, ABC):
    """A part of the objective. Its own parameters, if any, learn in the discriminator's step.

    Args:
        discriminator_weight: factor in the discriminator's loss, on real images: a number, or a schedule of
            images seen; 0 leaves the term out.
        generator_weight: factor in the generator's loss, on generated images, likewise.
        from_resolution: resolution, px, below which the term is left out.

    Attributes:
        name: of its losses: train/d_NAME and train/g_NAME.
        needs_pairs: in the generator's step it compares with the real images of the same captions.
    """

    name: str
    needs_pairs: bool = False

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
        """Its factor in a step, now; at 0 the term need not be worked out."""
        if resolution < self.from_resolution:
            return 0.0
        weight = self.discriminator_weight if step == "discriminator" else self.generator_weight
        return weight(images_seen) if callable(weight) else weight

    def check(self, discriminator: Discriminator) -> None:
        """Raise ValueError where it does not fit the discriminator, naming the argument to mend."""

    @abstractmethod
    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, shown: LossInputs
    ) -> PerSample:
        """The unweighted loss of each image with its own caption, or of those images that it asks about.

        Args:
            discriminator: it judges; frozen in the generator's step.
            adversarial: the game's loss.
            shown: the images.
        """

    def note(self, name: str, value: Tensor) -> None:
        """Keep a number to be logged beside the loss, as train/d_rotation_accuracy for "accuracy"."""
        self._notes[name] = value.detach()

    def take_notes(self) -> dict[str, Tensor]:
        """The numbers since the last call, by name."""
        notes, self._notes = self._notes, {}
        return notes


def check_size(term: LossTerm, argument: str, given: int, right: int, whose: str) -> None:
    """Raise ValueError unless an argument of a term's constructor is what the networks are made with."""
    if given != right:
        raise ValueError(
            f"{type(term).__name__}.{argument} is {given}, but {whose} is {right}: set it to {right}"
        )


class SeparatelyTrainedLoss(LossTerm):
    """A term with a network that learns real images in a step of its own, and is frozen in the others.

    Args:
        optimizer: makes its optimizer, as `torch.optim.AdamW`.
        generator_weight: factor in the generator's loss, on generated images: a number, or a schedule of
            images seen; 0 leaves the term out.
        from_resolution: resolution, px, below which the generator is not taught.
        every: it learns at every nth batch.

    Attributes:
        needs_features: in its own step it reads what the discriminator sees; else the look is saved.
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

    def prepare(self, captions: Callable[[], Iterable[str]]) -> None:
        """Get its network ready, before the first batch and before a checkpoint is read.

        Args:
            captions: gives captions of the training set: all, or of a stream the first ones.
        """

    @abstractmethod
    def learn(self, shown: LossInputs) -> PerSample:
        """What its own network minimises on real images; their features carry no gradient."""


class LossTerms(nn.ModuleList):
    """All terms of a run.

    Args:
        terms: in the order in which their losses are added.

    Raises:
        ValueError: two would be logged under one name.
    """

    def __init__(self, terms: Iterable[LossTerm]) -> None:
        super().__init__(terms)
        names = [term.name for term in self]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"model has two terms named {', '.join(twice)}: keep one of each")

    def __iter__(self) -> Iterator[LossTerm]:
        return super().__iter__()  # type: ignore[return-value]

    @property
    def taught(self) -> SeparatelyTrainedLoss | None:
        """The one that learns in a step of its own."""
        return next((term for term in self if isinstance(term, SeparatelyTrainedLoss)), None)

    def discriminator_step_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that learn in the discriminator's step."""
        return (p for term in self if not isinstance(term, SeparatelyTrainedLoss) for p in term.parameters())

    def need_pairs(self, images_seen: int, resolution: int) -> bool:
        """Whether the generator's step must look at the real images too."""
        return any(term.needs_pairs and term.weight("generator", images_seen, resolution) for term in self)

    def losses(
        self,
        step: Step,
        discriminator: Discriminator,
        adversarial: AdversarialLoss,
        shown: LossInputs,
        images_seen: int,
    ) -> tuple[dict[str, PerSample], dict[str, Tensor]]:
        """Of the terms that have a weight now: each one's weighted loss, and what they note, by name."""
        losses: dict[str, PerSample] = {}
        notes: dict[str, Tensor] = {}
        for term in self:
            weight = term.weight(step, images_seen, shown.growth.resolution)
            if weight:
                name = f"{step[0]}_{term.name}"
                losses[name] = weight * term(discriminator, adversarial, shown)
                notes |= {f"{name}_{key}": value for key, value in term.take_notes().items()}
        return losses, notes
