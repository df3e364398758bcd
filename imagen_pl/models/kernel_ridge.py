"""Kernel ridge regression from captions to features of their images: fitted in closed form before training.

Axes: b batch, n examples, m captions at most, c channels of a caption's vector, f features of the backbone, d
targets, k predicted numbers, h w pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.pretrained.backbones import Backbone

# Batches of the captions' pooled vectors and their images.
Pairs = Iterable[tuple[Float[Tensor, "b c"], UInt8[Tensor, "b _c h w"]]]


class KernelRidge(nn.Module, ABC):
    """Kernel ridge regression on the cosine of captions' vectors (Murphy, Machine Learning, 2012, eq. 14.45).

        predict(t) = sum_i k(t, t_i) w_i    with  k(t, u) = exp(sharpness (cos(t, u) - 1))
        w = (K + ridge I)^-1 (f - mean f)

    t_i are training captions. f are targets computed from their images: first, principal components of a
    frozen network's features; subclasses may add others. No gradient descent is involved.

    The buffers are saved with the model: `known` holds the normalised caption vectors t_i and `weights` the
    w_i. `centre` and `directions` are the mean and the principal components of the network's features; they
    are empty until the regression is fitted, since the number of features is not known before.

    Args:
        backbone: the frozen network.
        captions: m, how many training captions the regression uses, spread over the set; for a smaller set
            the buffers are filled up with zeros. Fitting takes time proportional to m^3 and memory to m^2.
        text_dim: c, size of the text encoder's vectors.
        seen_dim: number of principal components of the network's features that are predicted.
        sharpness: inverse width of the kernel; a larger one gives more weight to the nearest captions.
        ridge: the regression's regularisation.
        more_dim: number of further predicted numbers.
    """

    configured_by: str = ""  # the class that the settings belong to, for messages; "" is the own class

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
        self.backbone = backbone  # not a submodule: its weights are not saved with the model
        self.captions, self.text_dim, self.ridge = captions, text_dim, ridge
        self.seen_dim, self.predicted_dim = seen_dim, seen_dim + more_dim
        self.centre: Tensor
        self.directions: Tensor
        self.known: Tensor
        self.weights: Tensor
        self.sharpness: Tensor
        # Saved too: the weights are valid for the sharpness that they were fitted with only.
        self.register_buffer("sharpness", torch.tensor(float(sharpness)))
        self.register_buffer("known", torch.zeros(captions, text_dim))
        self.register_buffer("weights", torch.zeros(captions, self.predicted_dim))
        self.register_buffer("centre", torch.zeros(0))
        self.register_buffer("directions", torch.zeros(0, seen_dim))

    def predict(self, pooled: Float[Tensor, "b c"]) -> Float[Tensor, "b k"]:
        """Predictions for captions, float32."""
        with torch.autocast(pooled.device.type, enabled=False):
            cosines = F.normalize(pooled.float(), dim=1) @ self.known.float().T
            return (self.sharpness * (cosines - 1)).exp() @ self.weights.float()

    def cosine_distance(
        self, images: Float[Tensor, "b _c h w"], pooled: Float[Tensor, "b c"]
    ) -> Float[Tensor, " b"]:
        """1 - cos between the features of images and those predicted for captions, 0 to 2.

        Args:
            images: about -1 to 1; the distance is differentiable with respect to them.
            pooled: the captions' vectors.
        """
        return self.distance_to_prediction(images, self.predict(pooled))

    def distance_to_prediction(
        self, images: Float[Tensor, "b _c h w"], predicted: Float[Tensor, "b k"]
    ) -> Float[Tensor, " b"]:
        """`cosine_distance` for captions whose predictions are computed already."""
        means = self.means(images)
        with torch.autocast(means.device.type, enabled=False):
            features = (means.float() - self.centre.float()) @ self.directions.float()
            return 1 - F.cosine_similarity(features, predicted[:, : self.seen_dim], dim=1)

    @property
    def has_components(self) -> bool:
        """Whether `cosine_distance` can be computed; older models were saved without the components."""
        return len(self.centre) > 0

    def check_components(self) -> None:
        """Raise UserError if `cosine_distance` cannot be computed or the backbone is not available."""
        if not self.has_components:
            raise UserError(
                f"this model's {type(self).__name__} was fitted by imagen_pl before 2026-11-27, which did "
                "not save the principal components that refining needs: train the model again"
            )
        if len(self.centre) != sum(self.backbone.channels):
            raise UserError(
                f"this model's {type(self).__name__} was fitted with another backbone, or with other maps of "
                "it: configure the same ones"
            )

    def fit(self, pairs: Pairs) -> None:
        """Fit the regression.

        Args:
            pairs: batches of captions' vectors and their images, at most `captions` in all.

        Raises:
            UserError: there are no pairs or too many, or the backbone is not available.
        """
        fit_together([self], pairs)

    @abstractmethod
    def targets(self, images: Float[Tensor, "b _c h w"], means: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        """The numbers that are regressed, before `fit_weights` reduces them.

        Args:
            images: -1 to 1.
            means: the backbone's features of these images, as from `means`.
        """

    @abstractmethod
    def fit_weights(
        self, targets: Float[Tensor, "n d"], kernel: Float[Tensor, "n n"], factor: Float[Tensor, "n n"]
    ) -> Float[Tensor, "n k"]:
        """The weights w; calls `set_components`.

        Args:
            targets: of all images, float64.
            kernel: K.
            factor: the Cholesky factor of K + ridge I.
        """

    def set_components(self, centre: Float[Tensor, " f"], directions: Float[Tensor, "f _k"]) -> None:
        """Keep mean and principal components of the network's features."""
        room = (0, self.seen_dim - directions.shape[1])
        self.centre, self.directions = centre.to(self.weights), F.pad(directions, room).to(self.weights)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("centre", "directions"):
            own = getattr(self, name)
            # A model that was saved without the components keeps the empty ones.
            found = state_dict.setdefault(prefix + name, own)
            setattr(self, name, own.new_zeros(found.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def means(self, images: Float[Tensor, "b _c h w"]) -> Float[Tensor, "b f"]:
        """The backbone's features: the spatial mean of each channel of its maps."""
        return torch.cat([each.mean((2, 3)) for each in self.backbone(images)], dim=1)


@torch.no_grad()
def fit_together(modules: Sequence[KernelRidge], pairs: Pairs) -> None:
    """Fit several regressions with the same backbone and number of captions, in one pass over the images.

    Args:
        modules: at least one.
        pairs: as of `KernelRidge.fit`.

    Raises:
        UserError: as `KernelRidge.fit`.
    """
    first, name = modules[0], type(modules[0]).__name__
    vectors: list[Tensor] = []
    targets: list[list[Tensor]] = [[] for _ in modules]
    for pooled, images in pairs:
        vectors.append(F.normalize(pooled.cpu().double(), dim=1))
        scaled = images.to(first.known.device).float() / 127.5 - 1
        means = first.means(scaled)
        for module, parts in zip(modules, targets, strict=True):
            parts.append(module.targets(scaled, means).cpu().double())
    found = sum(map(len, vectors))
    if not 1 <= found <= first.captions:
        raise UserError(f"a {name} of {first.captions} captions cannot be fitted to {found} of them")
    known = torch.cat(vectors)
    cosines = known @ known.T
    factorised: dict[tuple[float, float], tuple[Tensor, Tensor]] = {}
    for module, parts in zip(modules, targets, strict=True):
        settings = (float(module.sharpness), module.ridge)
        if settings not in factorised:
            kernel = (module.sharpness.cpu() * (cosines - 1)).exp()
            factor = torch.linalg.cholesky(kernel + module.ridge * torch.eye(found, dtype=kernel.dtype))
            factorised[settings] = (kernel, factor)
        weights = module.fit_weights(torch.cat(parts), *factorised[settings])
        room = (0, 0, 0, module.captions - found)
        module.known.copy_(F.pad(known, room))
        module.weights.copy_(F.pad(weights, room))


def principal(centred: Float[Tensor, "n d"], size: int) -> Float[Tensor, "d _k"]:
    """Directions of the first `size` principal components, or of all if there are fewer."""
    return torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :size]
