"""How well generated images fit their captions, scored by a network trained on images and text.

Axes: b batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from imagen_pl.errors import UserError
from imagen_pl.metrics.base import ImageMetric, Images
from imagen_pl.metrics.distributed import sum_over_processes
from imagen_pl.metrics.extractors import name_in_scores
from imagen_pl.models.pretrained.dual_encoders import DualEncoder

log = logging.getLogger(__name__)


class ClipScore(ImageMetric):
    """100 max(cos(image, caption), 0), the mean over images (arXiv:2104.08718, without its factor of 2.5).

    The score is named clip_score_ENCODER. Images whose caption is "" are skipped. Do not use it for a model
    that was trained with the same encoder.

    Args:
        encoder: for example imagen_pl.models.pretrained.dual_encoders.TransformersDualEncoder.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder = encoder
        self._name = f"clip_score_{name_in_scores(encoder.name)}"
        self._sums = torch.zeros(2, dtype=torch.float64)

    @property
    def scores(self) -> tuple[str, ...]:
        return (self._name,)

    def prepare(self, fid_weights: str | None = None) -> str | None:
        try:
            self.encoder.load()
        except UserError as error:
            return str(error)
        return None

    def needs_real(self, key: str) -> bool:
        return False

    @torch.no_grad()
    def update(self, images: Images, captions: Sequence[str], *, real: bool) -> None:
        captioned = [i for i, caption in enumerate(captions) if caption]
        if real or not captioned:
            return
        with torch.autocast(images.device.type, enabled=False):
            image_features = self.encoder.images(images[captioned].float() / 127.5 - 1)
            text_features = self.encoder.texts([captions[i] for i in captioned], images.device)
            cosine = F.cosine_similarity(image_features, text_features, dim=1).clamp(min=0).double()
        self._sums = self._sums.to(images.device) + torch.stack(
            [cosine.sum(), cosine.new_tensor(len(captioned))]
        )

    def compute(self, key: str) -> dict[str, float]:
        total, count = sum_over_processes(self._sums).tolist()
        return {self._name: 100 * total / count if count else float("nan")}

    def reset(self) -> None:
        self._sums = torch.zeros_like(self._sums)
