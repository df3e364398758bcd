"""A judge of sets and kinds: logistic regression on the features of real pictures.

Axes: n pictures, f features, k classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

_LEAST = 20  # pictures of a class
_DECAY = 1e-3


@dataclass(frozen=True)
class StyleJudge:
    """Names the class of a picture.

    classes: the names.
    centre, scale: of the features, before the weights.
    weight, bias: of the regression.
    """

    classes: list[str]
    centre: Float[Tensor, " f"]
    scale: Float[Tensor, " f"]
    weight: Float[Tensor, "k f"]
    bias: Float[Tensor, " k"]

    @classmethod
    def fit(cls, features: Float[Tensor, "n f"], labels: Sequence[str]) -> StyleJudge:
        """Fit to real pictures. Those with the label "" and classes of fewer than 20 are left out."""
        classes = sorted(name for name, count in Counter(labels).items() if name and count >= _LEAST)
        kept = [i for i, label in enumerate(labels) if label in classes]
        target: Int64[Tensor, " n"] = torch.tensor([classes.index(labels[i]) for i in kept])
        x = features[kept].double()
        centre, scale = x.mean(0), x.std(0).clamp_min(1e-6)
        x = (x - centre) / scale
        weight = torch.zeros(len(classes), x.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(len(classes), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(x @ weight.T + bias, target) + _DECAY * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        return cls(classes, centre, scale, weight.detach(), bias.detach())

    def accuracy(self, features: Float[Tensor, "n f"], labels: Sequence[str]) -> tuple[float, int]:
        """Share of pictures that are given their label, of those whose label is a class; and their number."""
        kept = [i for i, label in enumerate(labels) if label in self.classes]
        if not kept:
            return float("nan"), 0
        x = (features[kept].double() - self.centre) / self.scale
        found = (x @ self.weight.T + self.bias).argmax(1).tolist()
        right = sum(self.classes[k] == labels[i] for k, i in zip(found, kept, strict=True))
        return right / len(kept), len(kept)
