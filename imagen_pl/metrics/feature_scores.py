"""Scores that compare generated with real images by their features; YAML may name any number of them.

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
from imagen_pl.metrics.base import ExtendedImageMetric, Images
from imagen_pl.metrics.distances import gaussian_discrepancy
from imagen_pl.metrics.distributed import all_items, all_rows, process_count, process_rank
from imagen_pl.metrics.evaluation import diversity, memorisation
from imagen_pl.metrics.extractors import EfficientNetLite0, Extractor
from imagen_pl.metrics.feature_cache import RealStatistics
from imagen_pl.metrics.precision_recall import density_and_coverage, precision_and_recall
from imagen_pl.metrics.retrieval import retrieval_accuracy

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureSets:
    """The features that a score compares. Rows i of `fake` and `real` are the images of captions[i]."""

    real: Float[Tensor, "n f"]
    fake: Float[Tensor, "n f"]
    captions: list[str]
    again: Float[Tensor, "p k f"]  # k generated images of each of p captions; empty if no score needs them
    train: Float[Tensor, "t f"]  # training images; empty if no score needs them


class FeatureScore(ABC):
    """One score, or several that are computed together.

    Attributes, set by the subclass:
        names: names of the scores, without the extractor's name.
        pictures: how many generated images it needs of each of the first `captions` captions.
        captions: how many captions it needs several images of.
        training_images: how many training images it needs.
    """

    names: tuple[str, ...]
    pictures = 1  # generated images of each caption
    captions = 0  # captions with `pictures` images each
    training_images = 0

    @abstractmethod
    def __call__(self, compared: FeatureSets) -> tuple[float, ...]:
        """One number for each name. Raises UserError if there are too few images."""

    def named(self, extractor: Extractor) -> tuple[str, ...]:
        """Names with the extractor's, since a score has no meaning without it."""
        return tuple(f"{name}_{extractor.name}" for name in self.names)


class PrecisionRecall(FeatureScore):
    """Share of generated images that lie near real ones, and the reverse (arXiv:1904.06991).

    Args:
        neighbours: k; the ball around an image reaches to the k-th nearest image of the same set.
    """

    names = ("precision", "recall")

    def __init__(self, neighbours: int = 3) -> None:
        self.neighbours = _at_least_one(neighbours)

    def __call__(self, compared: FeatureSets) -> tuple[float, ...]:
        return precision_and_recall(compared.real, compared.fake, self.neighbours)


class DensityCoverage(FeatureScore):
    """How densely generated images lie among real ones, and how many real ones they cover (arXiv:2002.09797).

    Args:
        neighbours: k; the ball around a real image reaches to the k-th nearest real image.
    """

    names = ("density", "coverage")

    def __init__(self, neighbours: int = 5) -> None:
        self.neighbours = _at_least_one(neighbours)

    def __call__(self, compared: FeatureSets) -> tuple[float, ...]:
        return density_and_coverage(compared.real, compared.fake, self.neighbours)


class GaussianDiscrepancy(FeatureScore):
    """Squared maximum mean discrepancy with a Gaussian kernel; with CLIP's features it is CMMD.

    The score is named mmd_EXTRACTOR, or cmmd with the network that defines CMMD (arXiv:2401.09603): CLIP
    ViT-L/14 at 336 px. Unlike the Fréchet distance it does not assume that the features are Gaussian.

    Args:
        sigma: width of the kernel, for features normalised to length one.
    """

    names = ("mmd",)

    def __init__(self, sigma: float = 10.0) -> None:
        if sigma <= 0:
            raise UserError(f"sigma {sigma} must be above 0")
        self.sigma = sigma

    def __call__(self, compared: FeatureSets) -> tuple[float, ...]:
        return (gaussian_discrepancy(compared.real, compared.fake, self.sigma),)

    def named(self, extractor: Extractor) -> tuple[str, ...]:
        return ("cmmd",) if extractor.defines_cmmd and self.sigma == 10.0 else super().named(extractor)


class CaptionRetrieval(FeatureScore):
    """Whether a generated image is nearest to its caption's real image, among others of the same style.

    Each caption should describe one image, and near-duplicates should occur once (data.balance_groups
    ensures that). The scores are also computed with shuffled captions, the baseline that ignores them.

    Args:
        distractors: number of real images of other captions among the candidates.
        style_after: separator between subject and style of a caption, for example ", " in
            "red heart, noto style"; distractors have the same style. None treats all captions as one style.
        seed: seed of the distractors.
    """

    names = ("top1", "top5", "mrr", "shuffled_top1", "shuffled_top5", "shuffled_mrr")

    def __init__(self, distractors: int = 99, style_after: str | None = ", ", seed: int = 0) -> None:
        self.distractors, self.style_after, self.seed = _at_least_one(distractors), style_after, seed

    def __call__(self, compared: FeatureSets) -> tuple[float, ...]:
        split = [subject_and_style(caption, self.style_after) for caption in compared.captions]
        subjects, styles = zip(*split, strict=True)
        true, shuffled = (
            retrieval_accuracy(
                compared.fake, compared.real, subjects, styles,
                seed=self.seed, distractors=self.distractors, shuffled=shuffle,
            )
            for shuffle in (False, True)
        )  # fmt: skip
        return true.top1, true.top5, true.mrr, shuffled.top1, shuffled.top5, shuffled.mrr


class Diversity(FeatureScore):
    """Mean distance between generated images of one caption, divided by that between real images.

    0 if all images of a caption are the same, 1 if they vary as much as real images of different captions.

    Args:
        captions: number of captions, the first ones, split evenly among the processes.
        pictures: number of generated images of each.
    """

    names = ("diversity",)

    def __init__(self, captions: int = 100, pictures: int = 4) -> None:
        if pictures < 2:
            raise UserError(f"Diversity: pictures {pictures} must be 2 or more")
        self.captions, self.pictures = _at_least_one(captions), pictures

    def __call__(self, compared: FeatureSets) -> tuple[float, ...]:
        if not len(compared.again):
            raise UserError("only one image was generated per caption")
        # Another score may need more.
        return (diversity(compared.again[: self.captions, : self.pictures], compared.real),)


class Memorisation(FeatureScore):
    """How near generated images come to training images, compared with held-out real images.

    memorisation_ratio is the median distance to the nearest training image, divided by that of held-out
    images: far below 1, generated images are copies. memorisation_near is the share of generated images that
    are nearer to a training image than 99% of the held-out images are.

    Not measured if validation uses the training images (data.val_split: train).

    Args:
        training_images: maximum number of training images, spread over the set.
    """

    names = ("memorisation_ratio", "memorisation_near")

    def __init__(self, training_images: int = 10_000) -> None:
        self.training_images = _at_least_one(training_images)

    def __call__(self, compared: FeatureSets) -> tuple[float, ...]:
        if not len(compared.train):
            raise UserError("validation has no training images to compare with")
        found = memorisation(compared.fake, compared.real, compared.train)
        return found.ratio, found.near


def subject_and_style(caption: str, style_after: str | None) -> tuple[str, str]:
    """A caption's two parts; the style is "" if it has none."""
    if style_after is None or style_after not in caption:
        return caption, ""
    subject, _, style = caption.rpartition(style_after)
    return subject, style


class FeatureScores(ExtendedImageMetric):
    """Scores that need every image's features, over all processes together.

    Unlike the Fréchet distance they cannot be computed from running sums, so features are held in memory,
    5 KB an image.

    Args:
        scores: for example imagen_pl.metrics.feature_scores.PrecisionRecall.
        extractor: network that computes the features; None takes EfficientNet-Lite0, which works offline.
        images: maximum number of real and of generated images, the first ones, split evenly among the
            processes.
    """

    def __init__(
        self, scores: list[FeatureScore], extractor: Extractor | None = None, images: int = 5000
    ) -> None:
        if not scores or images < 2:
            raise UserError(f"FeatureScores: scores must name one or more, and images {images} be 2 or more")
        self.parts = scores
        self.extractor = extractor if extractor is not None else EfficientNetLite0()
        self.images = images
        # The largest number that any of the scores needs.
        self._captions_again = max(part.captions for part in scores)
        self._pictures = max(part.pictures for part in scores)
        self._training_images = max(part.training_images for part in scores)
        self._statistics = RealStatistics(self.extractor, f"features {images}")
        self._training_statistics = RealStatistics(self.extractor, f"training {self._training_images}")
        self._device = torch.device("cpu")
        self._kept: dict[bool, list[Float[Tensor, "b f"]]] = {True: [], False: []}
        self._captions: list[str] = []
        self._real_key: str | None = None
        # Features of several images per caption: of the last batch so far, and of the batches before.
        self._several: list[Float[Tensor, "b f"]] = []
        self._again: list[Float[Tensor, "b k f"]] = []
        self._train: list[Float[Tensor, "b f"]] = []
        self._train_key: str | None = None
        self._train_cached = self._train_shared = True

    @property
    def scores(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts for name in part.named(self.extractor))

    def prepare(self, fid_weights: str | None = None) -> str | None:
        return self.extractor.prepare(fid_weights)

    def needs_real(self, key: str) -> bool:
        if key != self._real_key:
            self._real_key, self._kept[True] = None, []
            if self._statistics.read(key, self._load_real):
                self._real_key = key
        return key != self._real_key

    @property
    def sees_training(self) -> bool:
        return self._training_images > 0

    def needs_training(self, key: str) -> int:
        if key == self._train_key:
            return 0
        self._train_key, self._train, self._train_shared = key, [], False
        self._train_cached = self._training_statistics.read(key, self._load_training)
        # Only the first process computes them; `_all_training` shares them.
        return 0 if self._train_cached or process_rank() else self._training_images

    def update_training(self, images: Images) -> None:
        self._device = images.device
        self._train.append(self.extractor(images).cpu())

    def further_images_needed(self) -> int:
        return self._pictures - 1 if self._several else 0

    def update_further(self, images: Images) -> None:
        self._several.append(self.extractor(images[: len(self._several[0])]).cpu())
        if len(self._several) == self._pictures:
            self._again.append(torch.stack(self._several, dim=1))
            self._several = []

    def update(self, images: Images, captions: Sequence[str], *, real: bool) -> None:
        self._device = images.device
        # Real and generated images come in the same order, so taking equally many keeps them paired.
        left = -(-self.images // process_count()) - sum(map(len, self._kept[real]))
        if left > 0:
            self._kept[real].append(self.extractor(images[:left]).cpu())
            if not real:
                self._captions += captions[:left]
                wanted = -(-self._captions_again // process_count()) - sum(map(len, self._again))
                self._several = [self._kept[False][-1][:wanted]] if wanted > 0 else []

    def compute(self, key: str) -> dict[str, float]:
        real, fake = (self._all(self._kept[which]) for which in (True, False))
        train = self._all_training()
        again = self._all([part.flatten(1) for part in self._again], self._pictures * self.extractor.dim)
        captions = all_items(self._captions)
        if self._real_key != key:
            self._real_key = key
            if len(real) >= 2:  # otherwise none were given; the next validation may have them
                self._statistics.write(key, {"features": real})
        if len(real) != len(fake):
            log.warning(
                "%s: %d real and %d generated images cannot be paired", self.scores[0], len(real), len(fake)
            )
            return dict.fromkeys(self.scores, float("nan"))
        compared = FeatureSets(real, fake, captions, again.unflatten(1, (self._pictures, -1)), train)
        return {name: value for part in self.parts for name, value in self._score(part, compared)}

    def reset(self) -> None:
        self._kept[False], self._captions = [], []
        self._several, self._again = [], []

    def _score(self, part: FeatureScore, compared: FeatureSets) -> list[tuple[str, float]]:
        names = part.named(self.extractor)
        try:
            return list(zip(names, part(compared), strict=True))
        except UserError as error:
            log.warning("%s cannot be computed: %s", ", ".join(names), error)
            return [(name, float("nan")) for name in names]

    def _load_real(self, cached: dict[str, Tensor]) -> None:
        self._kept[True] = [cached["features"].reshape(-1, self.extractor.dim)]

    def _all_training(self) -> Float[Tensor, "t f"]:
        """The first process's training features, on every process; gathered once and cached once."""
        if not self._train_shared:
            self._train, self._train_shared = [self._all(self._train)], True
            if not self._train_cached and len(self._train[0]):
                self._train_cached = True
                self._training_statistics.write(str(self._train_key), {"features": self._train[0]})
        return torch.cat([torch.zeros(0, self.extractor.dim), *self._train])

    def _load_training(self, cached: dict[str, Tensor]) -> None:
        self._train = [cached["features"].reshape(-1, self.extractor.dim)]

    def _all(self, parts: list[Float[Tensor, "b f"]], width: int | None = None) -> Float[Tensor, "n f"]:
        return all_rows(torch.cat([torch.zeros(0, width or self.extractor.dim), *parts]), self._device)


def _at_least_one(number: int) -> int:
    if number < 1:
        raise UserError(f"{number} must be 1 or more")
    return number
