"""In place of a text encoder: class labels, or nothing at all.

Axes: b batch, t tokens, c classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from difflib import get_close_matches

import torch

from imagen_pl.errors import UserError
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.types import TextFeatures


class ClassLabels(TextEncoder):
    """Captions that are classes: each becomes a one-hot vector, so that the networks learn a vector a class.

    Its length is sqrt(c), so that the mean square of its entries is one, as of other encoders' vectors. The
    empty caption, as `data.caption_dropout` makes it, is a vector of zeros.

    Args:
        classes: all captions of the data, each once.
    """

    def __init__(self, classes: list[str]) -> None:
        if len(set(classes)) != len(classes) or not classes or "" in classes:
            raise UserError(f"text_encoder.classes {classes} must be different names, and at least one")
        self.classes: list[str] = list(classes)
        self.dim = len(classes)
        self.fingerprint = hashlib.sha256(repr(("labels", classes)).encode()).hexdigest()[:16]

    def encode(self, captions: Sequence[str], device: torch.device | str = "cpu") -> TextFeatures:
        """Features of class names. Raises UserError for any other caption but ""."""
        places = {name: place for place, name in enumerate(self.classes)}
        pooled = torch.zeros(len(captions), self.dim)
        for row, caption in enumerate(captions):
            if caption:
                pooled[row, self._place(places, caption)] = self.dim**0.5
        mask = torch.tensor([[bool(caption)] for caption in captions], dtype=torch.bool)
        return TextFeatures(pooled[:, None].clone(), mask.reshape(-1, 1), pooled).to(device)

    def _place(self, places: dict[str, int], caption: str) -> int:
        if caption in places:
            return places[caption]
        near = get_close_matches(caption, self.classes, n=3) or self.classes[:5]
        raise UserError(
            f"{caption!r} is none of the {self.dim} classes of this model: try {', '.join(map(repr, near))}"
        )


class NoText(TextEncoder):
    """Ignores captions, for a GAN without a condition: each is the same vector of zeros.

    Leave out losses that match captions to images.

    Args:
        dim: size of the vector.
    """

    def __init__(self, dim: int = 4) -> None:
        if dim < 1:
            raise UserError(f"text_encoder.dim {dim} must be 1 or more")
        self.dim, self.fingerprint = dim, f"no-text-{dim}"

    def encode(self, captions: Sequence[str], device: torch.device | str = "cpu") -> TextFeatures:
        pooled = torch.zeros(len(captions), self.dim)
        mask = torch.ones(len(captions), 1, dtype=torch.bool)
        return TextFeatures(pooled[:, None].clone(), mask, pooled).to(device)
