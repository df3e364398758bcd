"""The base class of the self-supervised pretext tasks, and the prediction of an image's rotation.

Axes: b images of the step, n sampled images, h w pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, LossTerm, PerSample, check_share, check_size
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.schedules import Schedule


class SelfSupervisedTask(LossTerm):
    """A prediction task on images that needs no captions; its head is trained with the discriminator.

    Args:
        share: share of the images that are sampled, above 0 to 1: each costs another forward pass.
        discriminator_weight: factor in the discriminator's loss, on real images: a number, or a schedule of
            images seen; 0 skips the task.
        generator_weight: factor in the generator's loss, on generated images, likewise.
        from_resolution: resolution, px, below which the task is skipped.
    """

    needs_plain_images = True

    def __init__(
        self,
        share: float,
        discriminator_weight: float | Schedule,
        generator_weight: float | Schedule,
        from_resolution: int = 4,
    ) -> None:
        super().__init__(discriminator_weight, generator_weight, from_resolution)
        check_share(self, share)
        self.share = share

    def selected_images(self, inputs: LossInputs) -> Float[Tensor, "n _c h w"]:
        """The sampled images, at least one: the batch's first rows, which are in random order already."""
        return inputs.images[: max(round(self.share * len(inputs.images)), 1)]

    def check_map(
        self, discriminator: Discriminator, resolution: int, channels: int, argument: str = "map_channels"
    ) -> None:
        """Raise ValueError unless the discriminator has such a feature map whenever the task is computed."""
        maps, name = discriminator.map_channels, type(self).__name__
        if resolution not in maps:
            raise ValueError(
                f"{name} reads a map of {resolution} px, but the discriminator's are of {sorted(maps)} px: "
                "change map_resolution"
            )
        check_size(self, argument, channels, maps[resolution], f"the discriminator's map of {resolution} px")
        if self.from_resolution < resolution:
            raise ValueError(
                f"{name}.from_resolution {self.from_resolution} must be {resolution} or more: smaller images "
                f"have no map of {resolution} px"
            )


class Rotation(SelfSupervisedTask):
    """Predict by which of four rotations an image was turned (SSGAN, arXiv:1811.11212, section 3).

    Images that are not square are turned by 0 or 180 degrees, which keeps their shape.

    The discriminator is trained on rotated real images, so that its features keep describing whole shapes
    while the generator changes; the generator is trained to make images whose rotation can be predicted as
    reliably.

    Args:
        image_dim: size of the discriminator's `final_dim`.
        share: share of the images that are rotated, above 0 to 1: each costs another forward pass.
        discriminator_weight: factor in the discriminator's loss, on real images: a number, or a schedule of
            images seen; 0 skips the task. The paper's is 1.
        generator_weight: factor in the generator's loss, on generated images, likewise; the paper's is 0.2.
        from_resolution: resolution, px, below which the task is skipped.
    """

    name = "rotation"

    def __init__(
        self,
        image_dim: int = 256,
        share: float = 0.25,
        discriminator_weight: float | Schedule = 1.0,
        generator_weight: float | Schedule = 0.2,
        from_resolution: int = 4,
    ) -> None:
        super().__init__(share, discriminator_weight, generator_weight, from_resolution)
        self.head = nn.Linear(image_dim, 4)

    def check(self, discriminator: Discriminator) -> None:
        right = discriminator.final_dim
        check_size(self, "image_dim", self.head.in_features, right, "the discriminator's final_dim")

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        images = self.selected_images(inputs)
        n, device = len(images), images.device
        # All four rotations as equally often as possible, in random order.
        turns = (torch.randperm(n, device=device) + torch.randint(4, (), device=device)) % 4
        step = 1 if images.shape[2] == images.shape[3] else 2
        turns = turns // step * step
        all_turns = torch.stack([images.rot90(k, (2, 3)) for k in range(0, 4, step)])  # (4 or 2, n, c, h, w)
        turned = all_turns[turns // step, torch.arange(n, device=device)]
        logits = self.head(discriminator.extract_features(turned, inputs.growth).final).float()
        self.note("accuracy", (logits.argmax(1) == turns).float().mean())
        return F.cross_entropy(logits, turns, reduction="none")
