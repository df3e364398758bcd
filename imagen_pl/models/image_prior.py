"""What the image of a caption should look like, guessed from the images of captions like it.

Axes: b batch, n images, c channels of a caption's vector, d k numbers, r pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imagen_pl.models.kernel_ridge import KernelRidge, principal
from imagen_pl.models.pretrained.backbones import Backbone

_THUMBNAIL = 16  # side, px


class ImagePrior(KernelRidge):
    """Guesses from a caption's vector what is to be seen, by kernel ridge regression on images of training.

    A prior as in unCLIP (arXiv:2204.06125, section 2.2), which draws from a guessed image vector beside the
    caption; here it is solved at once, before the first batch. What is guessed of an image are the means of a
    frozen network's maps, and a thumbnail of 16 px, each by its first principal components. A sentence
    encoder's vectors say what words mean, and their neighbours need not look alike. A guess says what does,
    of captions never learnt as well.

    It is a part of the generator: saved, released and exported with it. Nothing in it is trained. A resume,
    or a start from another's stem, keeps the one that the weights were trained with.

    Args:
        backbone: the frozen network. It counts as one that teaches the model, which it must not score.
        captions: m, how many captions of training it rests on, spread over all; what a smaller set lacks
            is filled up with zeros. Solving takes time by m^3 and memory by m^2.
        text_dim: c, size of the text encoder's vectors.
        seen_dim: numbers that guess the network's maps.
        thumbnail_dim: numbers that guess the thumbnail.
        sharpness: how much nearer captions count more.
        ridge: how little single images are trusted. Too small, and guesses for captions of training are so
            much better than for others that the generator learns to trust them too much.
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
        """Raise ValueError unless it is made for vectors of this size."""
        if self.text_dim != text_dim:
            raise ValueError(
                f"text_dim is {text_dim}, but prior.init_args.text_dim is {self.text_dim}: set both to the "
                "size of the text encoder's vectors"
            )

    def forward(self, pooled: Float[Tensor, "b c"]) -> Float[Tensor, "b k"]:
        """Guesses, float32; over the captions that it rests on each part has a mean square of one."""
        return self.guess(pooled)

    def extract_features(self, images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b d"]:
        thumbnails = F.adaptive_avg_pool2d(images, _THUMBNAIL).flatten(1)
        return torch.cat([self.means(images).float(), thumbnails], dim=1)

    def solve(
        self, numbers: Float[Tensor, "n d"], kernel: Float[Tensor, "n n"], factor: Float[Tensor, "n n"]
    ) -> Float[Tensor, "n k"]:
        pixels = 3 * _THUMBNAIL**2
        seen, thumbnails = numbers.tensor_split([numbers.shape[1] - pixels], 1)
        weights = []
        for part, size in zip((seen, thumbnails), self.parts, strict=True):
            centred = part - part.mean(0)
            directions = principal(centred, size)
            if part is seen:
                self.keep(part.mean(0), directions)
            solved = torch.cholesky_solve(centred @ directions, factor)
            scale = (kernel @ solved).square().mean().sqrt().clamp_min(1e-12)
            weights.append(F.pad(solved / scale, (0, size - solved.shape[1])))
        return torch.cat(weights, dim=1)
