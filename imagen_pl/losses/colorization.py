"""A pretext task on colour: what colours does a grey image have?

Axes: b images of the step, n images that are asked about, r pixels, m places of a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, PerSample
from imagen_pl.losses.self_supervised import SelfSupervisedTask
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.schedules import Schedule

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601's red, green and blue in grey


class Colorization(SelfSupervisedTask):
    """From its lightness alone: which colours has the image, roughly where? (arXiv:1603.08511)

    The discriminator is shown the image in grey, and its map tells each place's mean colour, as the two
    opponent axes blue-yellow and red-cyan of YCbCr. The loss is L1, so that a place whose colour cannot be
    known costs no more than its distance.

    Give the generator a weight with care: its images are drawn towards the colours that are usual for their
    shapes, which takes away bold ones where a shape fits several.

    Args:
        map_channels: channels of the discriminator's map.
        map_resolution: of the discriminator's map, px; colours are told at as many places a side.
        share: share of the images that are asked about, above 0 to 1: each costs another look.
        discriminator_weight: factor in the discriminator's loss, on real images: a number, or a schedule of
            images seen; 0 leaves it out.
        generator_weight: factor in the generator's loss, on generated images, likewise.
        from_resolution: resolution, px, below which the task is left out.
    """

    name = "colorization"

    def __init__(
        self,
        map_channels: int = 128,
        map_resolution: int = 8,
        share: float = 0.25,
        discriminator_weight: float | Schedule = 1.0,
        generator_weight: float | Schedule = 0.0,
        from_resolution: int = 8,
    ) -> None:
        super().__init__(share, discriminator_weight, generator_weight, from_resolution)
        self.map_resolution = map_resolution
        self.head = nn.Conv2d(map_channels, 2, 1)

    def check(self, discriminator: Discriminator) -> None:
        self.check_map(discriminator, self.map_resolution, self.head.in_channels)

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        grey, colours = opponents(self.asked(inputs))
        seen = discriminator.extract_features(grey.expand(-1, 3, -1, -1), inputs.growth)
        told = self.head(seen.maps[self.map_resolution]).float()
        true = F.adaptive_avg_pool2d(colours, self.map_resolution)
        error = (told - true).abs().mean((1, 2, 3))
        unknowing = (true - true.mean((0, 2, 3), keepdim=True)).abs().mean()
        # 1: no better than to say the batch's mean colour everywhere; 0: all is told rightly.
        self.note("of_mean", error.mean() / unknowing.clamp_min(1e-6))
        return error


def opponents(
    images: Float[Tensor, "n 3 r r"],
) -> tuple[Float[Tensor, "n 1 r r"], Float[Tensor, "n 2 r r"]]:
    """Grey, -1 to 1, and the axes blue-yellow and red-cyan, each -1 to 1 (YCbCr of ITU-R BT.601)."""
    images = images.float()
    grey = (images * images.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    red, blue = images[:, :1] - grey, images[:, 2:] - grey
    # The most that a difference can be is that of the pure colour.
    return grey, torch.cat([blue / (2 - 2 * _LUMA[2]), red / (2 - 2 * _LUMA[0])], dim=1)
