"""A pretext task on colour: predict the colours of a greyscale image.

Axes: b images of the step, n sampled images, h w pixels, m places of a feature map.
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

_LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in grey, ITU-R BT.601


class Colorization(SelfSupervisedTask):
    """Predict the coarse colours of an image from its lightness alone (arXiv:1603.08511).

    The discriminator reads the image in grey, and a linear head on one of its feature maps predicts each
    place's mean colour, as the two opponent axes blue-yellow and red-cyan of YCbCr. The loss is L1, so that
    a place whose colour is unpredictable costs no more than its distance.

    Use a weight for the generator with care: it pulls images towards the colours that are usual for their
    shapes, so that bold colours are lost where a shape fits several.

    Args:
        map_channels: channels of the discriminator's feature map.
        map_resolution: resolution of the discriminator's feature map, px; colours are predicted at each of
            its places.
        share: share of the images that are sampled, above 0 to 1: each costs another forward pass.
        discriminator_weight: factor in the discriminator's loss, on real images: a number, or a schedule of
            images seen; 0 skips the task.
        generator_weight: factor in the generator's loss, on generated images, likewise.
        from_resolution: resolution, px, below which the task is skipped.
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
        images = self.selected_images(inputs)
        grey, colours = opponents(images[:, :3])
        grey = torch.cat([grey.expand(-1, 3, -1, -1), images[:, 3:].float()], 1)  # alpha stays as it is
        seen = discriminator.extract_features(grey, inputs.growth)
        predicted = self.head(seen.maps[self.map_resolution]).float()
        true = F.adaptive_avg_pool2d(colours, predicted.shape[-2:])
        error = (predicted - true).abs().mean((1, 2, 3))
        unknowing = (true - true.mean((0, 2, 3), keepdim=True)).abs().mean()
        # 1: no better than the batch's mean colour everywhere; 0: every colour is predicted exactly.
        self.note("of_mean", error.mean() / unknowing.clamp_min(1e-6))
        return error


def opponents(
    images: Float[Tensor, "n 3 h w"],
) -> tuple[Float[Tensor, "n 1 h w"], Float[Tensor, "n 2 h w"]]:
    """Grey, -1 to 1, and the colour axes blue-yellow and red-cyan, each -1 to 1 (YCbCr of ITU-R BT.601)."""
    images = images.float()
    grey = (images * images.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    red, blue = images[:, :1] - grey, images[:, 2:] - grey
    # Scaled by the largest possible difference, that of the pure colour.
    return grey, torch.cat([blue / (2 - 2 * _LUMA[2]), red / (2 - 2 * _LUMA[0])], dim=1)
