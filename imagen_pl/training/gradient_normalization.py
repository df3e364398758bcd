"""Gives the gradient that the discriminator sends to the generator's images a constant size.

Axes: b batch, r pixels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from imagen_pl.errors import UserError

Images = Float[Tensor, "b c h w"]


class GradientNormalization(nn.Module):
    """The gradient from discriminator to generator, divided by a moving average of its size.

    Adversarial flow models (arXiv:2511.22475) do this so that the adversarial loss and the losses
    that see the images directly keep the same proportion, however steep the discriminator is. The size is
    the root mean square over the images, of all processes, of a gradient's norm. The losses on the
    discriminator's features are normalised together, FeatureMatching and a captioner with
    DiscriminatorFeatures among them. Losses that read the images themselves are not, as EnergyMatching,
    PerceptualMatching and a captioner with BackboneFeatures.

    Args:
        decay: of the moving average, at each step, 0 to 1.
        size: what the gradient of a batch's mean loss is scaled to, for each image. With an optimizer that
            ignores the gradient's size, as Muon, it only sets the proportion to the other losses.
    """

    squared: Float[Tensor, ""]
    steps: Float[Tensor, ""]

    def __init__(self, decay: float = 0.9, size: float = 1.0) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise UserError(f"GradientNormalization.decay {decay} must be 0 or more and less than 1")
        if size <= 0:
            raise UserError(f"GradientNormalization.size {size} must be more than 0")
        self.decay, self.size = decay, size
        self.register_buffer("squared", torch.zeros(()))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, images: Images, scale: float = 1.0) -> Images:
        """The same images; their gradient will be normalised.

        Args:
            images: generated images with a gradient.
            scale: factor on the losses in float16 training.
        """
        seen = images.view_as(images)
        seen.register_hook(lambda gradient: self.normalized(gradient, scale))
        return seen

    @torch.no_grad()
    def normalized(self, gradient: Images, scale: float) -> Images:
        """The gradient in the wanted size; the average is that of the steps until now, this one included.

        A gradient that is not finite is returned as it is: float16 training skips its step.
        """
        rows = len(gradient)
        # Each image has the share 1 / rows of the mean loss.
        squared = (gradient.float() / scale * rows).square().sum() / rows
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(squared)
            squared /= distributed.get_world_size()
        if not torch.isfinite(squared):
            return gradient
        self.steps += 1
        self.squared.lerp_(squared, 1 - self.decay)
        average = self.squared / (1 - self.decay**self.steps)  # corrected for the start at 0, as in Adam
        return (gradient.float() * (self.size / average.sqrt().clamp(min=1e-20))).to(gradient.dtype)
