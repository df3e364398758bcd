"""The generator's moving average, on the clock of images."""

from __future__ import annotations

import copy

import torch
from torch import nn

from imagen_pl.models.generators.base import Generator


class GeneratorEMA(nn.Module):
    """A copy of the generator that follows it slowly: what samples, scores and releases are made with.

    After `halflife_kimg` thousand images, half of what it held is gone, whatever the batch size
    (EDM2, arXiv:2312.02696, section 3, speaks of the same in terms of images).

    Args:
        generator: the network to follow; it is copied.
        halflife_kimg: half-life in thousands of images; 0 copies the generator at each step.
        ramp: early in training the half-life is at most this share of the images seen, so that the
            first weights are soon forgotten (StyleGAN2-ADA's `ema_rampup`, 0.05).
    """

    def __init__(self, generator: Generator, halflife_kimg: float, ramp: float = 0.05) -> None:
        super().__init__()
        self.halflife_kimg, self.ramp = halflife_kimg, ramp
        self.generator = copy.deepcopy(generator).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> GeneratorEMA:
        """The average is only ever used, so it stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, generator: Generator, images_seen: int, batch_size: int) -> None:
        """Move towards the generator.

        Args:
            generator: the network, after its step.
            images_seen: the clock.
            batch_size: images that this step has seen, over all processes.
        """
        halflife = min(self.halflife_kimg * 1000, images_seen * self.ramp)
        keep = 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0
        average: list[torch.Tensor] = list(self.generator.parameters())
        current: list[torch.Tensor] = list(generator.parameters())
        torch._foreach_lerp_(average, current, 1 - keep)
        for mine, theirs in zip(self.generator.buffers(), generator.buffers(), strict=True):
            mine.copy_(theirs)
