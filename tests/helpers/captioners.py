"""Captioners of a few kB, and features for them that need no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_pl.losses.captioning import Captioning
from imagen_pl.models.captioner.image_features import CaptionFeatures
from imagen_pl.models.captioner.model import Captioner
from tests.helpers.training import adam


class Pixels(CaptionFeatures):
    """The image itself at 4 px."""

    channels = (3,)

    def forward(self, images: Tensor, seen: Mapping[int, Tensor] | None = None) -> list[Tensor]:
        return [F.adaptive_avg_pool2d(images, 4)]


def tiny_captioner(**settings: Any) -> Captioner:
    """16 wide, of one layer, without dropout, and always with the same first weights."""
    defaults: dict[str, Any] = {
        "features": Pixels(),
        "vocab_size": 300,
        "max_tokens": 16,
        "dim": 16,
        "layers": 1,
        "heads": 2,
        "dropout": 0.0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Captioner(**{**defaults, **settings})


def tiny_captioning(captioner: Captioner | None = None, **settings: Any) -> Captioning:
    """A loss term with an effect from the first image on."""
    return Captioning(captioner or tiny_captioner(), adam(), **{"generator_weight": 1.0, **settings})
