"""Frozen networks that score how well generated images fit their captions.

Axes: b batch, c channels, e dimensions of the joint embedding space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossInputs, LossTerm, PerSample, check_size
from imagen_pl.losses.frozen_maps import check_channels, mean_vectors
from imagen_pl.losses.text_matching import ImageTextContrastive
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.pretrained.backbones import Backbone
from imagen_pl.models.pretrained.dual_encoders import DualEncoder
from imagen_pl.schedules import Schedule


class ImageTextGuidance(LossTerm):
    """1 - cos(image, caption) in the space of a frozen dual encoder, for generated images (CLIP guidance).

    StyleGAN-T (arXiv:2301.09515, section 3.3) uses a weight of 0.2 and warns against more: images then fit
    the encoder alone. Images whose caption was dropped ("") are skipped.

    Args:
        encoder: embeds images and captions into one space.
        generator_weight: factor in the generator's loss: a number, or a schedule of images seen.
        from_resolution: resolution, px, below which the term is skipped; embeddings of small images carry
            little information.
    """

    name = "guidance"

    def __init__(
        self, encoder: DualEncoder, generator_weight: float | Schedule = 0.2, from_resolution: int = 32
    ) -> None:
        super().__init__(0.0, generator_weight, from_resolution)
        self.encoder = encoder  # not registered as a submodule: its weights are not trained or saved

    def check(self, discriminator: Discriminator) -> None:
        self.encoder.load()

    def forward(
        self, discriminator: Discriminator, adversarial: AdversarialLoss, inputs: LossInputs
    ) -> PerSample:
        images = self.encoder.images(inputs.images)
        texts = self.encoder.texts(inputs.captions, images.device)
        said = torch.tensor([caption != "" for caption in inputs.captions], device=images.device)
        cosine = F.cosine_similarity(images, texts, dim=1)
        self.note("cosine", (cosine * said).sum() / said.sum().clamp(min=1))
        return (1 - cosine) * said


class BackboneGuidance(ImageTextContrastive):
    """Match captions and a frozen network's features of the images within the batch (InfoNCE both ways).

    A small dual encoder, trained during the run, for when no CLIP is available: one linear projection of the
    means of a backbone's feature maps, and one of the text encoder's vectors. The projections are trained on
    real pairs in the discriminator's step; the generator is trained so that they match its images with their
    captions. The model must not be scored with the same backbone.

    Args:
        backbone: frozen network that computes the feature maps; None takes those of the discriminator's own
            backbone, which saves a pass; they are of the images after augmentation.
        text_dim: size of the text encoder's vectors.
        embed_dim: size of the joint embedding space.
        temperature: initial value of the learned temperature.
        discriminator_weight: factor in the discriminator's loss, on real images; it trains the projections.
        generator_weight: factor in the generator's loss, on generated images.
        from_resolution: resolution, px, below which the term is skipped.
        negatives: number of earlier training captions that images are compared with, beside those of the
            batch.
        channels: with `backbone: null`, those of all maps of the discriminator's backbone together;
            512 for efficientnet_lite0.
    """

    name = "guidance"

    def __init__(
        self,
        backbone: Backbone | None,
        text_dim: int = 384,
        embed_dim: int = 128,
        temperature: float = 0.1,
        discriminator_weight: float | Schedule = 1.0,
        generator_weight: float | Schedule = 1.0,
        from_resolution: int = 8,
        negatives: int = 0,
        channels: int = 512,
    ) -> None:
        size = channels if backbone is None else sum(backbone.channels)
        super().__init__(
            size, text_dim, embed_dim, temperature, discriminator_weight, generator_weight, negatives
        )
        self.backbone = backbone  # not registered as a submodule: its weights are not trained or saved
        self.reads_pixels = backbone is not None
        self.from_resolution = from_resolution

    def check(self, discriminator: Discriminator) -> None:
        right = discriminator.text_dim
        check_size(self, "text_dim", self.text.in_features, right, "the discriminator's text_dim")
        if self.backbone is None:
            check_channels(self, self.image.in_features, discriminator)

    def vectors(self, inputs: LossInputs) -> Float[Tensor, "b c"]:
        maps = inputs.features.frozen if self.backbone is None else self.backbone(inputs.images)
        return mean_vectors(maps)
