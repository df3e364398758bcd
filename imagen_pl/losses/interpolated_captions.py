"""Captions that no image shows teach the generator too.

Axes: b batch, n pictures asked for, c channels of a caption's vector, d k numbers, r pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imagen_pl.models.generators.base import Generator
from imagen_pl.models.kernel_ridge import KernelRidge, principal
from imagen_pl.models.pretrained.backbones import Backbone
from imagen_pl.schedules import Schedule
from imagen_pl.types import Growth, TextFeatures


class InterpolatedCaptionLoss(KernelRidge):
    """Pictures for captions between those of training should show what a regression guesses of them.

    1 - cos(seen(G(z, t)), guess(t))    with t between two captions of the batch, as mixup (arXiv:1710.09412)

    A generator fits its training captions, and what it draws for others is left to chance: no real image can
    say what is wrong with it. Where a dual encoder would say (CLIP guidance, StyleGAN-T, arXiv:2301.09515,
    section 3.3), here it is a kernel ridge regression from captions to a frozen network's features, solved on
    the training set before the first batch. A caption between two names what no image shows, and a guess is
    smooth: so is, then, what the generator makes of words that it never learnt.

    Args:
        backbone: the frozen network. It must not score the model.
        captions: how many captions of training the regression rests on, spread over all.
        text_dim: size of the text encoder's vectors.
        seen_dim: principal components of the network's features that count, each by its deviation's root.
        sharpness: how much nearer captions count more.
        ridge: how little single images are trusted.
        weight: factor in the generator's loss: a number, or a schedule of images seen.
        share: how many captions a step are drawn, as a share of the batch, above 0 and at most 1. Each lies
            between two of the same process and part of the batch, of which "" may be one; a single row is
            asked for as it is.
        from_resolution: resolution, px, below which it is left out; small images tell the network little,
            and the regression has seen them at full size.
    """

    name = "unseen"

    def __init__(
        self,
        backbone: Backbone,
        captions: int = 4096,
        text_dim: int = 384,
        seen_dim: int = 256,
        sharpness: float = 4.0,
        ridge: float = 2.0,
        weight: float | Schedule = 1.0,
        share: float = 0.25,
        from_resolution: int = 32,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"InterpolatedCaptionLoss.share {share} must be above 0 and at most 1")
        super().__init__(backbone, captions, text_dim, seen_dim, sharpness, ridge)
        self.weight, self.share, self.from_resolution = weight, share, from_resolution

    def check(self, text_dim: int) -> None:
        """Raise ValueError unless it is made for vectors of this size."""
        if self.text_dim != text_dim:
            raise ValueError(
                f"InterpolatedCaptionLoss.text_dim is {self.text_dim}, but the text encoder gives "
                f"{text_dim}: "
                f"set it to {text_dim}"
            )

    def weight_at(self, images_seen: int, resolution: int) -> float:
        """Its factor now; at 0 nothing need be drawn."""
        if resolution < self.from_resolution:
            return 0.0
        return self.weight(images_seen) if callable(self.weight) else self.weight

    def forward(
        self, generator: Generator, z: Float[Tensor, "b z"], text: TextFeatures, growth: Growth
    ) -> Float[Tensor, " n"]:
        """The unweighted loss of each picture that is drawn for it.

        Args:
            generator: draws them.
            z: latents.
            text: captions of training.
            growth: how far it has grown.
        """
        number = max(1, round(self.share * len(text)))
        between = mixed(text[:number], text.roll()[:number])
        return self.off(generator(z[:number], between, growth), between.pooled)

    def extract_features(self, images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b d"]:
        return self.means(images).float()

    def solve(
        self, numbers: Float[Tensor, "n d"], kernel: Float[Tensor, "n n"], factor: Float[Tensor, "n n"]
    ) -> Float[Tensor, "n k"]:
        centre = numbers.mean(0)
        directions = principal(numbers - centre, self.seen_dim)
        spread = ((numbers - centre) @ directions).std(0, correction=0)
        # Else the first few components would decide alone. Of few images some have no spread but of rounding.
        known = spread > 1e-4 * spread.max()
        directions = directions * torch.where(known, spread, torch.inf).rsqrt()
        self.keep(centre, directions)
        solved = torch.cholesky_solve((numbers - centre) @ directions, factor)
        return F.pad(solved, (0, self.seen_dim - directions.shape[1]))


def mixed(one: TextFeatures, other: TextFeatures) -> TextFeatures:
    """Captions at a random place between two: pooled vectors of one length, and the words of both."""
    place = torch.rand(len(one), 1, device=one.pooled.device)
    pooled = torch.lerp(one.pooled, other.pooled, place)
    pooled = pooled * pooled.square().mean(1, keepdim=True).clamp_min(1e-12).rsqrt()
    return TextFeatures(
        torch.cat([one.tokens, other.tokens], dim=1), torch.cat([one.mask, other.mask], dim=1), pooled
    )
