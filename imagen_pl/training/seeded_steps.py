"""The random numbers of training steps: functions of the seed, the clock and the process alone.

A resumed run repeats them, and a run has the same latents on any number of processes.

Axes: b batch, z latent.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from imagen_pl.models.augment import Augment
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.latents import latents, mix_seed
from imagen_pl.training.manual_optimization import ManualOptimization

# Mixed into the seed, so that the random numbers of different uses are independent.
DISCRIMINATOR_LATENTS, GENERATOR_LATENTS, _STEP = 0, 1, 2


class SeededSteps(ManualOptimization):
    """Draws the latents, noise and augmentation of each step.

    Attributes, set by the subclass:
        generator: its `latent_dim` is the size of the latents.
        augment: the augmentation, or None.
        seed: seed of all random numbers.
    """

    generator: Generator
    augment: Augment | None
    seed: int

    def latents_of_step(self, size: int, use: int, all_processes: bool = False) -> Float[Tensor, "b z"]:
        """This process's latents of a step, or those of all processes.

        They depend only on the seed and the clock: a run has the same latents for any number of processes,
        and a resumed run continues with the right ones.
        """
        source = torch.Generator().manual_seed(mix_seed(self.seed, self.images_seen, use))
        z = torch.randn(size, self.generator.latent_dim, generator=source)
        if not all_processes:
            own = size // self.trainer.world_size
            z = z[self.global_rank * own : (self.global_rank + 1) * own]
        return z.to(self.device)

    def seed_step(self) -> None:
        """Seed noise and augmentation by seed, clock and rank, so that a resumed run repeats them."""
        torch.manual_seed(mix_seed(self.seed, self.images_seen, _STEP + self.global_rank))
        if self.augment is not None:
            self.augment.follow_schedule(self.images_seen)

    def augmentation_seed(self, rows: slice) -> int:
        return mix_seed(self.seed, self.images_seen, self.global_rank, rows.start)

    def latents_of(self, indices: Iterable[int], seed: int) -> Float[Tensor, "b z"]:
        return latents(indices, seed, self.generator.latent_dim).to(self.device)

    def adapt_augmentation(self, confidence: Float[Tensor, " b"], size: int) -> None:
        """Adapt the augmentation's strength, if it has a target, to the discriminator's mean confidence."""
        if self.augment is not None and self.augment.target is not None:
            mean = self.trainer.strategy.reduce(confidence.mean(), reduce_op="mean")
            self.augment.adapt(float(mean), size)

    def optimization_numbers(self) -> dict[str, float]:
        """Learning rates and augmentation strength, for the loggers."""
        numbers = dict(zip(("train/d_lr", "train/g_lr"), self.learning_rates, strict=False))
        if self.augment is not None:
            numbers["train/augment_probability"] = float(self.augment.probability)
        return numbers
