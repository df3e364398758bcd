"""A generator loss that compares the images of a caption as a set, not each with a target.

Axes: b batch, d values of a flattened feature map.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imagen_pl.data.batch_samplers import attributes_of
from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, PerSample
from imagen_pl.losses.frozen_maps import FrozenMapsLoss
from imagen_pl.losses.text_matching import caption_ids
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.pretrained.backbones import Backbone
from imagen_pl.schedules import Schedule


class EnergyMatching(FrozenMapsLoss):
    """Energy distance between the generated and the real images of each caption, on a frozen network's maps.

        E |f(G(z, t)) - f(x)| - 1/2 E |f(G(z, t)) - f(G(z', t))|    Euclidean norms; x, z, z' of one caption t

    This is half the energy distance without its term on real images alone. Its expectation is smallest where
    the features of a caption's generated images have the distribution of those of its real ones (Cramér GAN,
    arXiv:1705.10743). Like a loss on pairs of images it teaches the generator to follow captions, and the
    second term keeps the images of a caption apart. It needs batches with several images of each caption, for
    example data.pictures_per_caption 4; a row whose caption is alone in the batch has no loss.

    Each map's norms are divided by the mean distance between the real images of the batch, so that all maps
    have equal weight.

    Args:
        backbone: network whose feature maps are compared. The model must not be scored with the same one.
            None takes the frozen feature maps that the discriminator reads, after augmentation, which saves
            another forward pass.
        generator_weight: factor in the generator's loss: a number, or a schedule of images seen.
        from_resolution: resolution, px, below which the term is skipped.
        single_images: assume that a caption with attributes, as "cupcake, fluent style", has a single image.
            If it occurs once in the batch, its sample is pulled to that image.
    """

    name = "energy"
    needs_groups = True

    def __init__(
        self,
        backbone: Backbone | None = None,
        generator_weight: float | Schedule = 1.0,
        from_resolution: int = 4,
        single_images: bool = False,
    ) -> None:
        super().__init__(backbone, generator_weight, from_resolution)
        self.single_images = single_images

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        generated, real = self.maps(inputs)
        ids = caption_ids(inputs).to(generated[0].device)
        equal = ids[:, None] == ids
        paired = self.paired(inputs.captions, equal)
        losses = [
            energy_distances(self.vectors(a), self.vectors(b), equal, paired)
            for a, b in zip(generated, real, strict=True)
        ]
        return torch.stack(losses).mean(0)

    def vectors(self, maps: Float[Tensor, "b _c _h _w"]) -> Float[Tensor, "b d"]:
        """What is compared of a feature map."""
        return maps.flatten(1).float()

    def paired(self, captions: list[str], equal: Bool[Tensor, "b b"]) -> Bool[Tensor, " b"]:
        """The rows that are compared with their own real image alone."""
        if not self.single_images:
            return torch.zeros_like(equal[0])
        named = torch.tensor([bool(attributes_of(caption)) for caption in captions], device=equal.device)
        return named & (equal.sum(1) == 1)


class StyleMatching(EnergyMatching):
    """Energy distance between statistics of the maps, which say how an image is drawn and not where.

    The statistics are the mean and the standard deviation of each channel over the map, as in AdaIN
    (arXiv:1703.06868, equation 12). The images of a caption are compared as in EnergyMatching, with the same
    arguments.
    """

    name = "style"

    def vectors(self, maps: Float[Tensor, "b _c _h _w"]) -> Float[Tensor, "b d"]:
        """The mean and the standard deviation of each channel."""
        deviation, mean = torch.std_mean(maps.float(), (2, 3), correction=0)
        return torch.cat([mean, deviation], 1)


def energy_distances(
    generated: Float[Tensor, "b d"],
    real: Float[Tensor, "b d"],
    equal: Bool[Tensor, "b b"],
    paired: Bool[Tensor, " b"],
) -> PerSample:
    """Each row's part of its caption's energy distance; 0 for captions with a single row.

    Args:
        generated: feature vectors of generated images.
        real: of real images, row by row of the same captions.
        equal: which rows have the same caption.
        paired: which captions with a single row have a loss, the distance to its real image.
    """
    centre = real.mean(0)  # without their common part, distances lose fewer digits in matrix products
    generated, real = generated - centre, real - centre
    products = "use_mm_for_euclid_dist"  # a fifth of the time of differences
    to_real = torch.cdist(generated, real, compute_mode=products)
    to_generated = torch.cdist(generated, generated, compute_mode=products)
    scale = torch.cdist(real, real, compute_mode=products).mean().clamp_min(1e-6)
    others = equal.float().fill_diagonal_(0.0)
    number = others.sum(1)
    attraction = (to_real * equal).sum(1) / equal.sum(1)
    repulsion = (to_generated * others).sum(1) / number.clamp_min(1)
    return (attraction - repulsion / 2) / scale * ((number > 0) | paired)
