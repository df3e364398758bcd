"""Differentiable augmentation of the discriminator's input, of real and generated images alike.

The changes are those of DiffAugment (arXiv:2006.10738), the rule for their probability is that of ADA
(arXiv:2006.06676).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.schedules import Schedule

Images = Float[Tensor, "b c h w"]


class Augment(nn.Module, ABC):
    """Changes images at random, with a fixed or adaptive probability.

    Args:
        probability: share of images that each change is applied to, 0 to 1; the first value if adaptive.
        target: ADA's target for the mean sign of the discriminator's logits of real images; None
            keeps `probability` fixed. The paper uses 0.6.
        adapt_kimg: thousands of images in which the probability can go from 0 to 1.
        schedule: the probability by images seen, in place of `probability`, as in R3GAN (arXiv:2501.05441);
            None leaves it as it is.

    Attributes:
        image_channels: of one image, where a sample is several images, joined in channels; set by the run. Of
            four, the last is alpha.
    """

    probability: Tensor
    image_channels: int = 3

    def __init__(
        self,
        probability: float = 1.0,
        target: float | None = None,
        adapt_kimg: float = 500.0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"probability {probability} is not between 0 and 1")
        if target is not None and schedule is not None:
            raise UserError("model.augment: set target or schedule, not both: each sets the probability")
        self.target, self.adapt_kimg, self.schedule = target, adapt_kimg, schedule
        self.register_buffer("probability", torch.tensor(float(probability)))

    @abstractmethod
    def forward(self, images: Images, seed: int | None = None) -> Images:
        """Augmented images; gradients flow through to the given ones.

        Args:
            images: -1 to 1.
            seed: the same seed augments two batches alike; None draws from torch's global generator.
        """

    def follow_schedule(self, images_seen: int) -> None:
        """Set the probability to that of the schedule, if there is one."""
        if self.schedule is not None:
            self.probability.fill_(min(max(self.schedule(images_seen), 0.0), 1.0))

    def adapt(self, confidence: float, batch_size: int) -> None:
        """Step the probability towards the target (arXiv:2006.06676, section 3.1).

        Args:
            confidence: mean of `AdversarialLoss.confidence` over all processes.
            batch_size: images since the last call, over all processes.
        """
        if self.target is not None:
            step = batch_size / (self.adapt_kimg * 1000)
            self.probability.add_(step if confidence > self.target else -step).clamp_(0, 1)


class DiffAugment(Augment):
    """Colour, translation and cutout, each applied independently at random (arXiv:2006.10738, section 4).

    Args:
        policy: the changes, in this order; None applies all.
        probability: share of images that each change is applied to, 0 to 1; the first value if adaptive.
        target: ADA's target (0.6 in the paper); None keeps `probability` fixed.
        adapt_kimg: thousands of images in which the probability can go from 0 to 1.
        schedule: the probability by images seen, in place of `probability`; None leaves it as it is.
    """

    def __init__(
        self,
        policy: list[Literal["color", "translation", "cutout"]] | None = None,
        probability: float = 1.0,
        target: float | None = None,
        adapt_kimg: float = 500.0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(probability, target, adapt_kimg, schedule)
        changes = {"color": self._color, "translation": translate, "cutout": cutout}
        self.policy = list(policy) if policy is not None else list(changes)
        unknown = [name for name in self.policy if name not in changes]
        if unknown:
            raise ValueError(f"policy {unknown} is not among {list(changes)}")
        self.changes = [changes[name] for name in self.policy]

    def forward(self, images: Images, seed: int | None = None) -> Images:
        device = images.device
        source = None if seed is None else torch.Generator(device).manual_seed(seed)
        for change in self.changes:
            draws = torch.rand(images.shape[0], 1, 1, 1, device=device, generator=source)
            images = torch.where(draws < self.probability, change(images, source), images)
        return images

    def _color(self, images: Images, source: torch.Generator | None) -> Images:
        return color(images, source, self.image_channels)


def color(images: Images, source: torch.Generator | None = None, channels: int = 3) -> Images:
    """Add -0.5 to 0.5 to the brightness; multiply saturation by 0 to 2 and contrast by 0.5 to 1.5.

    Several images of each sample, joined in channels, change alike. Alpha, the fourth of an image's
    `channels`, stays as it is.
    """
    brightness, saturation, contrast = torch.rand(
        3, images.shape[0], 1, 1, 1, device=images.device, generator=source
    )
    brighter = (images + (brightness - 0.5)).split(channels, 1)
    changed = [_saturate_and_contrast(each[:, :3], saturation, contrast) for each in brighter]
    if channels > 3:
        pairs = zip(changed, images.split(channels, 1), strict=True)
        changed = [torch.cat([colours, each[:, 3:]], 1) for colours, each in pairs]
    return changed[0] if len(changed) == 1 else torch.cat(changed, 1)


def _saturate_and_contrast(images: Images, saturation: Tensor, contrast: Tensor) -> Images:
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def translate(images: Images, source: torch.Generator | None = None, share: float = 0.125) -> Images:
    """Shift by up to an eighth of each side; the edge pixels are repeated, so that no border shows."""
    b, _, h, w = images.shape
    up, left = (max(int(side * share + 0.5), 1) for side in (h, w))
    padded = F.pad(images, [left, left, up, up], mode="replicate")
    down, right = _two_draws(2 * up + 1, 2 * left + 1, images, source)
    rows = torch.arange(h, device=images.device).view(1, h, 1) + down
    columns = torch.arange(w, device=images.device).view(1, 1, w) + right
    sample = torch.arange(b, device=images.device).view(b, 1, 1)
    return padded.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 3, 1, 2)


def cutout(images: Images, source: torch.Generator | None = None, share: float = 0.5) -> Images:
    """Set a square of half the shorter side to mid grey; its centre is anywhere: it may cross the border."""
    _, _, h, w = images.shape
    side = int(min(h, w) * share + 0.5)
    # The centre of an even side lies between pixels, so it has one more possible position.
    more = 1 - side % 2
    top, left = (middle - side // 2 for middle in _two_draws(h + more, w + more, images, source))
    rows = torch.arange(h, device=images.device).view(1, h, 1)
    columns = torch.arange(w, device=images.device).view(1, 1, w)
    hole = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    return images * (~hole)[:, None]


def _two_draws(
    rows: int, columns: int, images: Images, source: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Random whole numbers for each image, from 0 to below `rows` and `columns`: two tensors (b, 1, 1)."""
    b, device = len(images), images.device
    if rows == columns:
        # One draw for both, so that square images are changed as they always were.
        down, right = torch.randint(0, rows, (2, b, 1, 1), device=device, generator=source)
        return down, right
    down, right = (
        torch.randint(0, count, (b, 1, 1), device=device, generator=source) for count in (rows, columns)
    )
    return down, right
