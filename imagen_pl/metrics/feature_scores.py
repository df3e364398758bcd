"""Scores of generated against real images by their features: named in YAML, any number at once.

Axes: n real and m generated images, f features.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.metrics.base import ImageMetric, Images
from imagen_pl.metrics.distances import gaussian_discrepancy
from imagen_pl.metrics.extractors import EfficientNetLite0, Extractor
from imagen_pl.metrics.manifolds import density_and_coverage, precision_and_recall
from imagen_pl.metrics.processes import all_items, all_rows, process_count
from imagen_pl.metrics.real_statistics import RealStatistics
from imagen_pl.metrics.retrieval import retrieval_accuracy

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compared:
    """What a score sees. Row i of `fake` was drawn for captions[i], of which row i of `real` is the image."""

    real: Float[Tensor, "n f"]
    fake: Float[Tensor, "n f"]
    captions: list[str]


class FeatureScore(ABC):
    """One score, or several that are computed together.

    Attributes, set by the subclass:
        names: of what it gives, without the extractor's.
    """

    names: tuple[str, ...]

    @abstractmethod
    def __call__(self, compared: Compared) -> tuple[float, ...]:
        """One number a name. Raises UserError if there are too few images."""

    def named(self, extractor: Extractor) -> tuple[str, ...]:
        """Names with the extractor's: a score is nothing without it."""
        return tuple(f"{name}_{extractor.name}" for name in self.names)


class PrecisionRecall(FeatureScore):
    """Share of pictures among the real ones, and of real ones among the pictures (arXiv:1904.06991).

    Args:
        neighbours: an image's surroundings reach to this neighbour of its own kind.
    """

    names = ("precision", "recall")

    def __init__(self, neighbours: int = 3) -> None:
        self.neighbours = _at_least_one(neighbours)

    def __call__(self, compared: Compared) -> tuple[float, ...]:
        return precision_and_recall(compared.real, compared.fake, self.neighbours)


class DensityCoverage(FeatureScore):
    """How densely pictures lie among real ones, and how many of these they reach (arXiv:2002.09797).

    Args:
        neighbours: an image's surroundings reach to this neighbour of its own kind.
    """

    names = ("density", "coverage")

    def __init__(self, neighbours: int = 5) -> None:
        self.neighbours = _at_least_one(neighbours)

    def __call__(self, compared: Compared) -> tuple[float, ...]:
        return density_and_coverage(compared.real, compared.fake, self.neighbours)


class GaussianDiscrepancy(FeatureScore):
    """Squared maximum mean discrepancy with a Gaussian kernel; in CLIP's features it is CMMD.

    Its name is mmd_EXTRACTOR, and cmmd with the network that defines CMMD (arXiv:2401.09603): CLIP ViT-L/14
    at 336 px. Unlike the Fréchet distance it supposes no shape of the sets.

    Args:
        sigma: width of the kernel, of features brought to length one.
    """

    names = ("mmd",)

    def __init__(self, sigma: float = 10.0) -> None:
        if sigma <= 0:
            raise UserError(f"sigma {sigma} must be above 0")
        self.sigma = sigma

    def __call__(self, compared: Compared) -> tuple[float, ...]:
        return (gaussian_discrepancy(compared.real, compared.fake, self.sigma),)

    def named(self, extractor: Extractor) -> tuple[str, ...]:
        return ("cmmd",) if extractor.defines_cmmd and self.sigma == 10.0 else super().named(extractor)


class CaptionRetrieval(FeatureScore):
    """Is a picture nearer to the real image of its caption than to others' of the same style?

    Each caption should name one image, and near-alike images come once (data.balance_groups sees to that).
    Beside the scores stands what one gets with captions shuffled, heeding none.

    Args:
        distractors: real images of other captions that it is to be told from.
        style_after: what parts the style from a caption, as ", " in "red heart, noto style": distractors are
            of the same style. None takes all captions for one style.
        seed: of the distractors.
    """

    names = ("top1", "top5", "mrr", "shuffled_top1", "shuffled_top5", "shuffled_mrr")

    def __init__(self, distractors: int = 99, style_after: str | None = ", ", seed: int = 0) -> None:
        self.distractors, self.style_after, self.seed = _at_least_one(distractors), style_after, seed

    def __call__(self, compared: Compared) -> tuple[float, ...]:
        parted = [subject_and_style(caption, self.style_after) for caption in compared.captions]
        subjects, styles = zip(*parted, strict=True)
        true, shuffled = (
            retrieval_accuracy(
                compared.fake, compared.real, subjects, styles,
                seed=self.seed, distractors=self.distractors, shuffled=shuffle,
            )
            for shuffle in (False, True)
        )  # fmt: skip
        return true.top1, true.top5, true.mrr, shuffled.top1, shuffled.top5, shuffled.mrr


def subject_and_style(caption: str, style_after: str | None) -> tuple[str, str]:
    """A caption's two parts; the style is "" where there is none."""
    if style_after is None or style_after not in caption:
        return caption, ""
    subject, _, style = caption.rpartition(style_after)
    return subject, style


class FeatureScores(ImageMetric):
    """Scores that need every image's features, over all processes together.

    Unlike the Fréchet distance they cannot be added up: features are held in memory, 5 KB an image.

    Args:
        scores: as imagen_pl.metrics.feature_scores.PrecisionRecall.
        extractor: whose features; None takes EfficientNet-Lite0's, which need no network.
        images: the first so many of each are compared, split evenly among the processes.
    """

    def __init__(
        self, scores: list[FeatureScore], extractor: Extractor | None = None, images: int = 5000
    ) -> None:
        if not scores or images < 2:
            raise UserError(f"FeatureScores: scores must name one or more, and images {images} be 2 or more")
        self.parts = scores
        self.extractor = extractor if extractor is not None else EfficientNetLite0()
        self.images = images
        self._statistics = RealStatistics(self.extractor, f"features {images}")
        self._device = torch.device("cpu")
        self._kept: dict[bool, list[Float[Tensor, "b f"]]] = {True: [], False: []}
        self._captions: list[str] = []
        self._real_key: str | None = None

    @property
    def scores(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts for name in part.named(self.extractor))

    def prepare(self, fid_weights: str | None = None) -> str | None:
        return self.extractor.prepare(fid_weights)

    def needs_real(self, key: str) -> bool:
        if key != self._real_key:
            self._real_key, self._kept[True] = None, []
            if self._statistics.read(key, self._take_real):
                self._real_key = key
        return key != self._real_key

    def update(self, images: Images, captions: Sequence[str], *, real: bool) -> None:
        self._device = images.device
        # Real and generated images come in the same order, and so as many of each are taken.
        left = -(-self.images // process_count()) - sum(map(len, self._kept[real]))
        if left > 0:
            self._kept[real].append(self.extractor(images[:left]).cpu())
            if not real:
                self._captions += captions[:left]

    def compute(self, key: str) -> dict[str, float]:
        real, fake = self._all(True), self._all(False)
        captions = all_items(self._captions)
        if self._real_key != key:
            self._real_key = key
            if len(real) >= 2:  # else none came; they may, the next time
                self._statistics.write(key, {"features": real})
        if len(real) != len(fake):
            log.warning(
                "%s: %d real and %d generated images cannot be paired", self.scores[0], len(real), len(fake)
            )
            return dict.fromkeys(self.scores, float("nan"))
        compared = Compared(real, fake, captions)
        return {name: value for part in self.parts for name, value in self._score(part, compared)}

    def reset(self) -> None:
        self._kept[False], self._captions = [], []

    def _score(self, part: FeatureScore, compared: Compared) -> list[tuple[str, float]]:
        names = part.named(self.extractor)
        try:
            return list(zip(names, part(compared), strict=True))
        except UserError as error:
            log.warning("%s cannot be told: %s", ", ".join(names), error)
            return [(name, float("nan")) for name in names]

    def _take_real(self, held: dict[str, Tensor]) -> None:
        self._kept[True] = [held["features"].reshape(-1, self.extractor.dim)]

    def _all(self, real: bool) -> Float[Tensor, "n f"]:
        own = torch.cat([torch.zeros(0, self.extractor.dim), *self._kept[real]])
        return all_rows(own, self._device)


def _at_least_one(number: int) -> int:
    if number < 1:
        raise UserError(f"{number} must be 1 or more")
    return number
