"""Predicts features of a caption's image from the training images of similar captions.

Axes: b batch, n images, c channels of a caption's vector, f features of the backbone, d targets, k predicted
numbers, h w pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imagen_pl.imaging.transparency import on_white
from imagen_pl.models.kernel_ridge import KernelRidge, principal
from imagen_pl.models.pretrained.backbones import Backbone

_THUMBNAIL = 16  # side, px


class ImagePrior(KernelRidge):
    """Kernel ridge regression from a caption to features of its image, an input of the generator.

    A prior as in unCLIP (arXiv:2204.06125, section 2.2), which generates images from a predicted image vector
    and the caption. Here it is fitted in closed form before the first batch. It predicts the first principal
    components of two targets: the spatial means of a frozen network's maps, and a thumbnail of 16 px. A
    sentence encoder places captions of similar meaning close together, though their images may not look
    alike; predicted image features are close where images look alike, for new captions too.

    It is part of the generator: saved, released and exported with it. It has no trained parameters. A resumed
    run, or one with `init_from`, keeps the prior that the generator was trained with.

    Args:
        backbone: the frozen network. It counts as a network that trained the model, so it must not score it.
        captions: m, how many training captions the regression uses, spread over the set; for a smaller set
            the buffers are filled up with zeros. Fitting takes time proportional to m^3 and memory to m^2.
        text_dim: c, size of the text encoder's vectors.
        seen_dim: number of principal components of the network's features that are predicted.
        thumbnail_dim: number of principal components of the thumbnail that are predicted.
        sharpness: inverse width of the kernel; a larger one gives more weight to the nearest captions.
        ridge: the regression's regularisation. If it is too small, predictions for training captions are much
            better than for new ones, and the generator learns to rely on them too much.
    """

    def __init__(
        self,
        backbone: Backbone,
        captions: int = 4096,
        text_dim: int = 384,
        seen_dim: int = 256,
        thumbnail_dim: int = 128,
        sharpness: float = 4.0,
        ridge: float = 2.0,
    ) -> None:
        if thumbnail_dim < 1:
            raise ValueError(f"ImagePrior.thumbnail_dim {thumbnail_dim} must be 1 or more")
        super().__init__(backbone, captions, text_dim, seen_dim, sharpness, ridge, thumbnail_dim)
        self.parts = (seen_dim, thumbnail_dim)

    def check(self, text_dim: int) -> None:
        """Raise ValueError unless the prior is configured for caption vectors of this size."""
        if self.text_dim != text_dim:
            raise ValueError(
                f"text_dim is {text_dim}, but prior.init_args.text_dim is {self.text_dim}: set both to the "
                "size of the text encoder's vectors"
            )

    def forward(self, pooled: Float[Tensor, "b c"]) -> Float[Tensor, "b k"]:
        """Predictions, float32; each part has a mean square of one over the captions of the regression."""
        return self.predict(pooled)

    def targets(self, images: Float[Tensor, "b _c h w"], means: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        thumbnails = F.adaptive_avg_pool2d(on_white(images), _THUMBNAIL).flatten(1)
        return torch.cat([means.float(), thumbnails], dim=1)

    def fit_weights(
        self, targets: Float[Tensor, "n d"], kernel: Float[Tensor, "n n"], factor: Float[Tensor, "n n"]
    ) -> Float[Tensor, "n k"]:
        pixels = 3 * _THUMBNAIL**2
        means, thumbnails = targets.tensor_split([targets.shape[1] - pixels], 1)
        weights = []
        for part, size in zip((means, thumbnails), self.parts, strict=True):
            centred = part - part.mean(0)
            directions = principal(centred, size)
            if part is means:
                self.set_components(part.mean(0), directions)
            fitted = torch.cholesky_solve(centred @ directions, factor)
            scale = (kernel @ fitted).square().mean().sqrt().clamp_min(1e-12)
            weights.append(F.pad(fitted / scale, (0, size - fitted.shape[1])))
        return torch.cat(weights, dim=1)
