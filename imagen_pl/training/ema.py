"""The generator's exponential moving average, with its half-life counted in images."""

from __future__ import annotations

import copy

import torch
from torch import nn

from imagen_pl.models.generators.base import Generator


class GeneratorEMA(nn.Module):
    """An exponential moving average of the generator, used for samples, scores and releases.

    After `halflife_kimg` thousand images the old weights count half, whatever the batch size
    (EDM2, arXiv:2312.02696, section 3, also measures the average in images).

    Args:
        generator: the network to average; it is copied.
        halflife_kimg: half-life in thousands of images; 0 copies the generator at each step.
        ramp: early in training the half-life is at most this share of the images seen, so that the
            initial weights soon drop out of the average (StyleGAN2-ADA's `ema_rampup`, 0.05).
    """

    def __init__(self, generator: Generator, halflife_kimg: float, ramp: float = 0.05) -> None:
        super().__init__()
        self.halflife_kimg, self.ramp = halflife_kimg, ramp
        self.generator = copy.deepcopy(generator).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> GeneratorEMA:
        """Stay in evaluation mode: the average is never trained."""
        return super().train(False)

    @torch.no_grad()
    def update(self, generator: Generator, images_seen: int, batch_size: int) -> None:
        """Move the average towards the generator's current weights.

        Args:
            generator: the network, after its optimizer step.
            images_seen: the clock, images over all processes.
            batch_size: images of this step, over all processes.
        """
        halflife = min(self.halflife_kimg * 1000, images_seen * self.ramp)
        keep = 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0
        average: list[torch.Tensor] = list(self.generator.parameters())
        current: list[torch.Tensor] = list(generator.parameters())
        torch._foreach_lerp_(average, current, 1 - keep)
        for mine, theirs in zip(self.generator.buffers(), generator.buffers(), strict=True):
            mine.copy_(theirs)
