"""A pretext task on shape: reconstruct the image from the discriminator's feature maps.

Axes: b images of the step, n sampled images, c k channels, h w pixels, m height of a feature map, s of the
output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, PerSample, check_size
from imagen_pl.losses.self_supervised import SelfSupervisedTask
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.layers.initialisation import activation, conv
from imagen_pl.models.layers.resampling import downsample, upsample
from imagen_pl.models.pretrained.backbones import Backbone
from imagen_pl.schedules import Schedule

Images = Float[Tensor, "n _c h w"]


class Reconstruction(SelfSupervisedTask):
    """Decoders reconstruct the image from the discriminator's features (FastGAN, arXiv:2101.04775, 3.2).

    One decodes the whole image at half its side from the feature map of `map_resolution`; the other a random
    quarter of it, in full detail, from that quarter of the next finer feature map. So the feature maps must
    keep the layout and the detail, which works against collapse where images are few.

    The discriminator needs another forward pass, on images before augmentation, since these are the target.

    The paper compares by a perceptual network (LPIPS). Here it is L1 by default: it needs no second network,
    half the side leaves little of the detail that L1 blurs, and the decoders' images are used for nothing
    else.

    Args:
        map_channels: channels of the discriminator's feature map of `map_resolution`.
        finer_channels: channels of its feature map of twice that resolution.
        map_resolution: resolution of the feature map for the whole image, px.
        image_resolution: resolution of the last growth stage, px, which sets the decoders' largest output.
        width: the decoders' channels at the feature map's size; halved with each doubling of the side.
        backbone: frozen network whose feature maps are compared too; None compares pixels alone.
        share: share of the images that are sampled, above 0 to 1: each costs another forward pass.
        discriminator_weight: factor in the discriminator's loss, on real images: a number, or a schedule of
            images seen; 0 skips the task. The paper's is 1.
        generator_weight: factor in the generator's loss, on generated images, likewise; the paper has none.
        from_resolution: resolution, px, below which the task is skipped; at least twice `map_resolution`.
        image_channels: those of the networks.
    """

    name = "reconstruction"

    def __init__(
        self,
        map_channels: int = 128,
        finer_channels: int = 64,
        map_resolution: int = 8,
        image_resolution: int = 32,
        width: int = 32,
        backbone: Backbone | None = None,
        share: float = 0.25,
        discriminator_weight: float | Schedule = 1.0,
        generator_weight: float | Schedule = 0.0,
        from_resolution: int = 16,
        image_channels: int = 3,
    ) -> None:
        super().__init__(share, discriminator_weight, generator_weight, from_resolution)
        self.map_resolution, self.backbone = map_resolution, backbone
        self.map_channels, self.finer_channels = map_channels, finer_channels
        self.image_resolution = image_resolution
        doublings = max(image_resolution // 2 // map_resolution, 1).bit_length() - 1
        self.image_channels = image_channels
        self.whole = Decoder(map_channels, width, doublings, image_channels)
        self.part = Decoder(finer_channels, width, doublings, image_channels)

    def check(self, discriminator: Discriminator) -> None:
        finer, last = 2 * self.map_resolution, discriminator.resolutions[-1]
        self.check_map(discriminator, self.map_resolution, self.map_channels)
        self.check_map(discriminator, finer, self.finer_channels, "finer_channels")
        channels = discriminator.image_channels
        check_size(
            self, "image_channels", self.image_channels, channels, "the discriminator's image_channels"
        )
        if self.image_resolution < last:
            raise ValueError(
                f"Reconstruction.image_resolution is {self.image_resolution}, but the discriminator grows to "
                f"{last} px: set it to {last}"
            )

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        images = self.selected_images(inputs)
        seen = discriminator.extract_features(images, inputs.growth)
        place = torch.randint(2, (2, len(images)), device=images.device)
        height = images.shape[-2] // 2
        whole = self.whole(seen.maps[self.map_resolution], height)
        part = self.part(quarter(seen.maps[2 * self.map_resolution], place), height)
        whole_error = self._distance(whole, downsample(images))
        part_error = self._distance(part, quarter(images, place))
        self.note("whole", whole_error.mean())
        self.note("part", part_error.mean())
        return (whole_error + part_error) / 2

    def _distance(self, drawn: Images, true: Images) -> PerSample:
        pixels = (drawn.float() - true.float()).abs().mean((1, 2, 3))
        return pixels if self.backbone is None else pixels + perceptual(self.backbone, drawn, true)


class Decoder(nn.Module):
    """Decodes a feature map to an image; every number of doublings has its own RGB layer.

    Args:
        channels: channels of the feature map.
        width: channels after the first convolution, halved with each doubling, at least 8.
        doublings: the largest number of times that the side can be doubled.
        image_channels: of the image.
    """

    def __init__(self, channels: int, width: int, doublings: int, image_channels: int = 3) -> None:
        super().__init__()
        widths = [max(width >> k, 8) for k in range(doublings + 1)]
        self.narrow = conv(channels, widths[0], 1)
        self.grow = nn.ModuleList(conv(widths[k], widths[k + 1], 3) for k in range(doublings))
        self.to_rgb = nn.ModuleList(nn.Conv2d(w, image_channels, 3, padding=1) for w in widths)
        self.activation = activation()

    def forward(self, x: Float[Tensor, "n c m _m"], height: int) -> Float[Tensor, "n _k s _s"]:
        """An image of `height` px: the feature map's height or 2, 4, ... times as large."""
        doublings = (height // x.shape[-2]).bit_length() - 1
        x = self.activation(self.narrow(x))
        for k in range(doublings):
            x = self.activation(self.grow[k](upsample(x)))
        return self.to_rgb[doublings](x)


def quarter(x: Float[Tensor, "n c h w"], place: Int64[Tensor, "2 n"]) -> Float[Tensor, "n c s _s"]:
    """One quarter of each image: `place` is 0 or 1 for upper or lower, then 0 or 1 for left or right."""
    parts = x.unflatten(3, (2, -1)).unflatten(2, (2, -1))  # (n, c, 2, h / 2, 2, w / 2)
    return parts[torch.arange(len(x), device=x.device), :, place[0], :, place[1]]


def perceptual(backbone: Backbone, a: Images, b: Images) -> PerSample:
    """Distance of two images in a network's features (LPIPS, arXiv:1801.03924, eq. 1, all weights one)."""
    distances = []
    for mine, theirs in zip(backbone(a), backbone(b), strict=True):
        gap = F.normalize(mine, dim=1, eps=1e-6) - F.normalize(theirs, dim=1, eps=1e-6)
        distances.append(gap.square().sum(1).mean((1, 2)))
    return torch.stack(distances).mean(0)
