"""From captions' vectors to what their images show, solved at once and never trained.

Axes: b batch, n examples, m room for examples, c channels of a caption's vector, d k numbers, r pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.pretrained.backbones import Backbone


class KernelRidge(nn.Module, ABC):
    """Kernel ridge regression from a caption's direction (Murphy, Machine Learning, 2012, eq. 14.45).

        guess(t) = sum_i k(t, t_i) w_i    with  k(t, u) = exp(sharpness (cos(t, u) - 1))
        w = (K + ridge I)^-1 (f - mean f)

    t_i are captions of training, f numbers of their images, of which the first are principal components of
    what a frozen network sees; a subclass says which, and how they are weighed.

    Args:
        backbone: the frozen network that sees the images.
        captions: m, how many captions of training it rests on, spread over all; what a smaller set lacks
            is filled up with zeros. Solving takes time by m^3 and memory by m^2.
        text_dim: c, size of the text encoder's vectors.
        seen_dim: how many components of the network's features are guessed.
        sharpness: how much nearer captions count more.
        ridge: how little single images are trusted.
        more_dim: how many other numbers are guessed after those.
    """

    configured_by: str = ""  # the class whose arguments its settings are, for messages; "" is its own

    def __init__(
        self,
        backbone: Backbone,
        captions: int,
        text_dim: int,
        seen_dim: int,
        sharpness: float,
        ridge: float,
        more_dim: int = 0,
    ) -> None:
        super().__init__()
        name = self.configured_by or type(self).__name__
        for setting, count in (("captions", captions), ("seen_dim", seen_dim)):
            if count < 1:
                raise ValueError(f"{name}.{setting} {count} must be 1 or more")
        for setting, value in (("sharpness", sharpness), ("ridge", ridge)):
            if not value > 0:
                raise ValueError(f"{name}.{setting} {value} must be more than 0")
        self.backbone = backbone  # no module: its weights are not ours
        self.captions, self.text_dim, self.ridge = captions, text_dim, ridge
        self.seen_dim, self.guess_dim = seen_dim, seen_dim + more_dim
        self.centre: Tensor
        self.directions: Tensor
        self.known: Tensor
        self.weights: Tensor
        self.sharpness: Tensor
        # Saved with what was solved by it: another setting would not fit.
        self.register_buffer("sharpness", torch.tensor(float(sharpness)))
        self.register_buffer("known", torch.zeros(captions, text_dim))
        self.register_buffer("weights", torch.zeros(captions, self.guess_dim))
        # Empty until it is solved: how many features the network has is not known without reading it.
        self.register_buffer("centre", torch.zeros(0))
        self.register_buffer("directions", torch.zeros(0, seen_dim))

    def guess(self, pooled: Float[Tensor, "b c"]) -> Float[Tensor, "b k"]:
        """Guesses, float32."""
        with torch.autocast(pooled.device.type, enabled=False):
            near = F.normalize(pooled.float(), dim=1) @ self.known.float().T
            return (self.sharpness * (near - 1)).exp() @ self.weights.float()

    def cosine_distance(
        self, images: Float[Tensor, "b 3 r r"], pooled: Float[Tensor, "b c"]
    ) -> Float[Tensor, " b"]:
        """1 - cos between the features of images and those predicted for their captions, 0 to 2.

        Args:
            images: about -1 to 1; differentiable with regard to them.
            pooled: the captions' vectors.
        """
        return self.distance_to_guess(images, self.guess(pooled))

    def distance_to_guess(
        self, images: Float[Tensor, "b 3 r r"], guess: Float[Tensor, "b k"]
    ) -> Float[Tensor, " b"]:
        """`cosine_distance` for captions whose `guess` is computed already."""
        means = self.means(images)
        with torch.autocast(means.device.type, enabled=False):
            seen = (means.float() - self.centre.float()) @ self.directions.float()
            return 1 - F.cosine_similarity(seen, guess[:, : self.seen_dim], dim=1)

    @property
    def can_look(self) -> bool:
        """Whether `off` can be told: not of what was solved before its components were kept."""
        return len(self.centre) > 0

    def check_can_look(self) -> None:
        """Raise UserError where it cannot, or the backbone cannot be had."""
        if not self.can_look:
            raise UserError(
                f"this model's {type(self).__name__} was solved by imagen_pl before 2026-11-27, which did "
                "not keep how to look at pictures: train anew"
            )
        if len(self.centre) != sum(self.backbone.channels):
            raise UserError(
                f"this model's {type(self).__name__} was solved by another backbone, or by other maps of it: "
                "give it those"
            )

    def fit(self, seen: Iterable[tuple[Float[Tensor, "b c"], UInt8[Tensor, "b 3 r r"]]]) -> None:
        """Learn what the images of captions look like, all at once.

        Args:
            seen: batches of captions' vectors and of their images, at most as many in all as `captions`.

        Raises:
            UserError: there are none or too many, or the backbone cannot be had.
        """
        directions, numbers = [], []
        with torch.no_grad():
            for pooled, images in seen:
                directions.append(F.normalize(pooled.cpu().double(), dim=1))
                numbers.append(
                    self.extract_features(images.to(self.known.device).float() / 127.5 - 1).cpu().double()
                )
            found = sum(map(len, directions))
            if not 1 <= found <= self.captions:
                what = type(self).__name__
                raise UserError(f"a {what} of {self.captions} captions cannot learn from {found}")
            known = torch.cat(directions)
            kernel = (self.sharpness.cpu() * (known @ known.T - 1)).exp()
            factor = torch.linalg.cholesky(kernel + self.ridge * torch.eye(found, dtype=kernel.dtype))
            solved = self.solve(torch.cat(numbers), kernel, factor)
            room = (0, 0, 0, self.captions - found)
            self.known.copy_(F.pad(known, room))
            self.weights.copy_(F.pad(solved, room))

    @abstractmethod
    def extract_features(self, images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b d"]:
        """Numbers of images, -1 to 1."""

    @abstractmethod
    def solve(
        self, numbers: Float[Tensor, "n d"], kernel: Float[Tensor, "n n"], factor: Float[Tensor, "n n"]
    ) -> Float[Tensor, "n k"]:
        """The weights w, of the numbers of all images; `keep` is called on the way.

        Args:
            numbers: what was looked at, in float64.
            kernel: K.
            factor: the Cholesky factor of K + ridge I.
        """

    def keep(self, centre: Float[Tensor, " f"], directions: Float[Tensor, "f _k"]) -> None:
        """Remember which components of the network's features are guessed."""
        room = (0, self.seen_dim - directions.shape[1])
        self.centre, self.directions = centre.to(self.weights), F.pad(directions, room).to(self.weights)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("centre", "directions"):
            mine = getattr(self, name)
            # One from before they were kept goes on without.
            found = state_dict.setdefault(prefix + name, mine)
            setattr(self, name, mine.new_zeros(found.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def means(self, images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b _d"]:
        """The means of the backbone's maps, side by side."""
        return torch.cat([each.mean((2, 3)) for each in self.backbone(images)], dim=1)


def principal(centred: Float[Tensor, "n d"], size: int) -> Float[Tensor, "d _k"]:
    """Directions of the first principal components; fewer if there are not as many."""
    return torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :size]
