"""A loss that trains the discriminator to predict the features of a pretrained network.

Axes: b batch, f features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, LossTerm, PerSample, check_size
from imagen_pl.losses.frozen_maps import check_channels, mean_vectors
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.pretrained.backbones import Backbone
from imagen_pl.schedules import Schedule


class FeatureAlignment(LossTerm):
    """The discriminator's features of real images should predict those of a frozen network.

    1 - cos(W d(x), f(x) - m)    W: a trained linear layer; d: the discriminator's final vector; f: the means
    of the network's feature maps (`mean_vectors`); m: the mean of f over the batch, which all images share

    After the alignment of GAT (arXiv:2509.24935), which aligns each token of a transformer instead. Unlike
    losses on the generator's images it cannot be exploited by the generator. The model must not be scored
    with the same network.

    Args:
        backbone: the frozen network; None takes the feature maps of the discriminator's own backbone, which
            saves a pass; they are of the images after augmentation.
        image_dim: the discriminator's `final_dim`.
        channels: with `backbone: null`, those of all maps of the discriminator's backbone together; 512 for
            efficientnet_lite0.
        discriminator_weight: factor in the discriminator's loss.
        from_resolution: resolution, px, below which the term is skipped.
    """

    name = "alignment"

    def __init__(
        self,
        backbone: Backbone | None = None,
        image_dim: int = 256,
        channels: int = 512,
        discriminator_weight: float | Schedule = 1.0,
        from_resolution: int = 4,
    ) -> None:
        super().__init__(discriminator_weight, 0.0, from_resolution)
        self.backbone = backbone  # not registered as a submodule: its weights are not trained or saved
        self.predict = nn.Linear(image_dim, channels if backbone is None else sum(backbone.channels))

    def check(self, discriminator: Discriminator) -> None:
        given = self.predict.in_features
        check_size(self, "image_dim", given, discriminator.final_dim, "the discriminator's final_dim")
        if self.backbone is None:
            check_channels(self, self.predict.out_features, discriminator)

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        with torch.no_grad():
            maps = inputs.features.frozen if self.backbone is None else self.backbone(inputs.images)
            target: Float[Tensor, "b f"] = mean_vectors(maps).float()
            target = target - target.mean(0)
        return 1 - F.cosine_similarity(self.predict(inputs.features.final).float(), target, dim=1)
