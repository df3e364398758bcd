"""Losses that compare a generated image with the real image of the same caption.

They suit data where each caption describes one image only. Where a caption fits many images, these losses
pull towards their mean and reduce diversity: lower the weight by a schedule, or do without them.

Axes: b batch, h w pixels.
"""

from __future__ import annotations

from math import ceil

import torch

from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, LossTerm, PerSample, check_share, mean_of_each
from imagen_pl.losses.frozen_maps import FrozenMapsLoss
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.pretrained.backbones import Backbone
from imagen_pl.schedules import Schedule


class PixelMatching(LossTerm):
    """Mean distance of the pixels, -1 to 1, L1: |G(z, text) - x| (pix2pix, arXiv:1611.07004, eq. 3).

    It teaches layout and colours early at almost no cost; the adversarial loss adds the detail that a mean of
    images lacks.

    Args:
        generator_weight: factor in the generator's loss: a number, or a schedule of images seen.
        from_resolution: resolution, px, below which the term is skipped.
    """

    name = "pixel_matching"

    def __init__(self, generator_weight: float | Schedule = 5.0, from_resolution: int = 4) -> None:
        super().__init__(0.0, generator_weight, from_resolution)

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        if inputs.real_images is None:
            raise ValueError("pixel matching compares: give the real images too")
        return mean_of_each((inputs.images - inputs.real_images).abs())


class PerceptualMatching(FrozenMapsLoss):
    """Mean L1 distance between a frozen network's feature maps (arXiv:1603.08155, section 3.2).

    The distance of each feature map is divided by the mean absolute value of the real one.

    Args:
        backbone: network whose feature maps are compared. The model must not be scored with the same one.
            None takes the frozen feature maps that the discriminator reads, after augmentation, which saves
            another forward pass (configs/experiment/emoji64_projected.yaml).
        generator_weight: factor in the generator's loss: a number, or a schedule of images seen.
        from_resolution: resolution, px, below which the term is skipped.
        share: share of a batch that is compared, more than 0 and at most 1. The expected loss stays the same,
            and half the images take about half the network's time.
    """

    name = "perceptual_matching"

    def __init__(
        self,
        backbone: Backbone | None = None,
        generator_weight: float | Schedule = 1.0,
        from_resolution: int = 4,
        share: float = 1.0,
    ) -> None:
        super().__init__(backbone, generator_weight, from_resolution)
        check_share(self, share)
        self.share = share

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        count = ceil(len(inputs.images) * self.share)  # the first ones, since a batch's order is random
        mine, theirs = self.maps(inputs, count)
        distances = [
            mean_of_each((a - b).abs()) / b.abs().mean().clamp_min(1e-4)
            for a, b in zip(mine, theirs, strict=True)
        ]
        return torch.stack(distances).mean(0)
