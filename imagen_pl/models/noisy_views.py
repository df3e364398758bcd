"""Noise, blur and shifts for captioners whose loss trains a generator.

Axes: b batch, c channels, h w pixels.
"""

from __future__ import annotations

import torch

from imagen_pl.errors import UserError
from imagen_pl.models.augment import Augment, Images, translate
from imagen_pl.models.degradation import gaussian_blur


class NoisyViews(Augment):
    """Shifts, blurs and adds noise, by random amounts for each image.

    Input gradients of a network that was trained on noisy images are visible changes; those of other networks
    are mostly high-frequency noise (arXiv:1910.08640).

    Args:
        noise: largest standard deviation of Gaussian noise, for images in [-1, 1].
        blur: largest standard deviation of the blur, px.
        shift: largest shift, as a share of the side, 0 to 1; edge pixels are repeated.
        probability: share of images that each change is applied to, 0 to 1.
    """

    def __init__(
        self, noise: float = 0.5, blur: float = 1.0, shift: float = 0.125, probability: float = 1.0
    ) -> None:
        super().__init__(probability)
        for name, value, good, bounds in (
            ("noise", noise, noise >= 0, "0 or more"),
            ("blur", blur, blur >= 0, "0 or more"),
            ("shift", shift, 0 <= shift <= 1, "from 0 to 1"),
        ):
            if not good:
                raise UserError(f"NoisyViews.{name} {value} must be {bounds}")
        self.noise, self.blur, self.shift = noise, blur, shift

    def forward(self, images: Images, seed: int | None = None) -> Images:
        device, b = images.device, len(images)
        source = None if seed is None else torch.Generator(device).manual_seed(seed)
        chosen = torch.rand(3, b, 1, 1, 1, device=device, generator=source) < self.probability
        shifted, blurred, noisy = chosen
        amounts = torch.rand(2, b, device=device, generator=source)
        if self.shift:
            images = torch.where(shifted, translate(images, source, self.shift), images)
        if self.blur:
            images = gaussian_blur(images, self.blur * amounts[0] * blurred.flatten())
        if self.noise:
            drawn = torch.randn(images.shape, device=device, generator=source, dtype=images.dtype)
            images = images + drawn * (self.noise * amounts[1] * noisy.flatten()).view(b, 1, 1, 1)
        return images
