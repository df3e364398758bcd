"""A loss term: one value for each image, logged as train/g_warmth. Replace it with your own."""

from __future__ import annotations

from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, LossTerm, PerSample
from imagen_pl.models.discriminators.base import Discriminator


class Warmth(LossTerm):
    """Excess of blue over red in an image: trains the generator towards warm colours."""

    name = "warmth"

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        """relu(mean blue - mean red) of each image; channels are from -1 to 1."""
        red, _, blue = inputs.images.mean((2, 3)).unbind(1)
        return (blue - red).relu()
