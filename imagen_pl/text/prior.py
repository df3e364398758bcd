"""What the image of a caption should look like, guessed from the images of captions like it.

Axes: b batch, n images, m known captions, c channels of a caption's vector, k numbers of a guess, r pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from imagen_pl.backbones import Backbone
from imagen_pl.errors import UserError

_THUMBNAIL = 16  # side, px


class VisualPrior(nn.Module):
    """Guesses from a caption's vector what is to be seen, by kernel ridge regression on images of training.

    A prior as in unCLIP (arXiv:2204.06125, section 2.2), which draws from a guessed image vector beside the
    caption; here it is solved at once, before the first batch (Murphy, Machine Learning, 2012, eq. 14.45):

        guess(t) = sum_i k(t, t_i) w_i    with  k(t, u) = exp(sharpness (cos(t, u) - 1))
        w = (K + ridge I)^-1 (f - mean f)

    t_i are captions of training, f their images' numbers: the means of a frozen network's maps, and a
    thumbnail of 16 px, each by its first principal components. A sentence encoder's vectors say what words
    mean, and their neighbours need not look alike. A guess says what does, of captions never learnt as well.

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
        super().__init__()
        for name, value in (("captions", captions), ("seen_dim", seen_dim), ("thumbnail_dim", thumbnail_dim)):
            if value < 1:
                raise ValueError(f"VisualPrior.{name} {value} must be 1 or more")
        for name, real in (("sharpness", sharpness), ("ridge", ridge)):
            if not real > 0:
                raise ValueError(f"VisualPrior.{name} {real} must be more than 0")
        self.backbone = backbone  # no module: its weights are not ours
        self.captions, self.text_dim, self.parts = captions, text_dim, (seen_dim, thumbnail_dim)
        self.ridge = ridge
        self.known: Tensor
        self.weights: Tensor
        self.sharpness: Tensor
        # Saved with what was solved by it: another setting would not fit.
        self.register_buffer("sharpness", torch.tensor(float(sharpness)))
        self.register_buffer("known", torch.zeros(captions, text_dim))
        self.register_buffer("weights", torch.zeros(captions, self.guess_dim))

    @property
    def guess_dim(self) -> int:
        """k, the size of a guess."""
        return sum(self.parts)

    def check(self, text_dim: int) -> None:
        """Raise ValueError unless it is made for vectors of this size."""
        if self.text_dim != text_dim:
            raise ValueError(
                f"text_dim is {text_dim}, but prior.init_args.text_dim is {self.text_dim}: set both to the "
                "size of the text encoder's vectors"
            )

    def forward(self, pooled: Float[Tensor, "b c"]) -> Float[Tensor, "b k"]:
        """Guesses, float32; over the captions that it rests on each part has a mean square of one."""
        with torch.autocast(pooled.device.type, enabled=False):
            near = F.normalize(pooled.float(), dim=1) @ self.known.float().T
            return (self.sharpness * (near - 1)).exp() @ self.weights.float()

    @torch.no_grad()
    def fit(self, seen: Iterable[tuple[Float[Tensor, "b c"], UInt8[Tensor, "b 3 r r"]]]) -> None:
        """Learn what the images of captions look like, all at once.

        Args:
            seen: batches of captions' vectors and of their images, at most as many in all as `captions`.

        Raises:
            UserError: there are none or too many, or the backbone cannot be had.
        """
        directions, maps, thumbnails = [], [], []
        for pooled, images in seen:
            directions.append(F.normalize(pooled.cpu().double(), dim=1))
            shown = images.to(self.known.device).float() / 127.5 - 1
            means = [feature_map.mean((2, 3)) for feature_map in self.backbone(shown)]
            maps.append(torch.cat(means, dim=1).cpu().double())
            thumbnails.append(F.adaptive_avg_pool2d(shown, _THUMBNAIL).flatten(1).cpu().double())
        number = sum(map(len, directions))
        if not 1 <= number <= self.captions:
            raise UserError(f"a VisualPrior of {self.captions} captions cannot learn from {number}")
        known = torch.cat(directions)
        kernel = (self.sharpness.cpu() * (known @ known.T - 1)).exp()
        factor = torch.linalg.cholesky(kernel + self.ridge * torch.eye(number, dtype=kernel.dtype))
        weights = []
        for numbers, size in zip((maps, thumbnails), self.parts, strict=True):
            solved = torch.cholesky_solve(_principal(torch.cat(numbers), size), factor)
            scale = (kernel @ solved).square().mean().sqrt().clamp_min(1e-12)
            weights.append(F.pad(solved / scale, (0, size - solved.shape[1])))
        room = (0, 0, 0, self.captions - number)
        self.known.copy_(F.pad(known, room))
        self.weights.copy_(F.pad(torch.cat(weights, dim=1), room))


def _principal(numbers: Float[Tensor, "n d"], size: int) -> Float[Tensor, "n _k"]:
    """The first principal components, about their mean; fewer if there are not as many."""
    centred = numbers - numbers.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :size]
    return centred @ directions
