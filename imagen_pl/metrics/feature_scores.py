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
    """What a score sees. Row i of `fake` was drawn for captions[i], of which row i of `real` is the image."""

    real: Float[Tensor, "n f"]
    fake: Float[Tensor, "n f"]
    captions: list[str]
    again: Float[Tensor, "p k f"]  # of p captions k pictures each, none where no score asks for them
    train: Float[Tensor, "t f"]  # of images of training, none where no score asks for them


class FeatureScore(ABC):
    """One score, or several that are computed together.

    Attributes, set by the subclass:
        names: of what it gives, without the extractor's.
        pictures: how many it wants to see of each of the first `captions`.
        captions: see there.
        training_images: how many it wants to see.
    """

    names: tuple[str, ...]
    pictures = 1  # of each caption
    captions = 0  # that `pictures` are wanted for
    training_images = 0

    @abstractmethod
    def __call__(self, compared: FeatureSets) -> tuple[float, ...]:
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

    def __call__(self, compared: FeatureSets) -> tuple[float, ...]:
        return precision_and_recall(compared.real, compared.fake, self.neighbours)


class DensityCoverage(FeatureScore):
    """How densely pictures lie among real ones, and how many of these they reach (arXiv:2002.09797).

    Args:
        neighbours: an image's surroundings reach to this neighbour of its own kind.
    """

    names = ("density", "coverage")

    def __init__(self, neighbours: int = 5) -> None:
        self.neighbours = _at_least_one(neighbours)

    def __call__(self, compared: FeatureSets) -> tuple[float, ...]:
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

    def __call__(self, compared: FeatureSets) -> tuple[float, ...]:
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

    def __call__(self, compared: FeatureSets) -> tuple[float, ...]:
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


class Diversity(FeatureScore):
    """How far pictures of one caption are from each other, by how far real images are.

    0 for one picture a caption, 1 where they are as varied as real images of different captions.

    Args:
        captions: the first so many, split evenly among the processes.
        pictures: of each.
    """

    names = ("diversity",)

    def __init__(self, captions: int = 100, pictures: int = 4) -> None:
        if pictures < 2:
            raise UserError(f"Diversity: pictures {pictures} must be 2 or more")
        self.captions, self.pictures = _at_least_one(captions), pictures

    def __call__(self, compared: FeatureSets) -> tuple[float, ...]:
        if not len(compared.again):
            raise UserError("captions were drawn once each")
        # Another score may have asked for more.
        return (diversity(compared.again[: self.captions, : self.pictures], compared.real),)


class Memorisation(FeatureScore):
    """How near pictures come to images of training, held against how near held-out real images come.

    memorisation_ratio is the median distance to the nearest training image, by that of held-out images: far
    below 1, pictures are copies. memorisation_near is the share of pictures that are nearer than all but 1%
    of the held-out images.

    Left out where validation's images are those of training (data.val_split: train).

    Args:
        training_images: at most so many, from all over the set.
    """

    names = ("memorisation_ratio", "memorisation_near")

    def __init__(self, training_images: int = 10_000) -> None:
        self.training_images = _at_least_one(training_images)

    def __call__(self, compared: FeatureSets) -> tuple[float, ...]:
        if not len(compared.train):
            raise UserError("there are no images of training apart from those of validation")
        found = memorisation(compared.fake, compared.real, compared.train)
        return found.ratio, found.near


def subject_and_style(caption: str, style_after: str | None) -> tuple[str, str]:
    """A caption's two parts; the style is "" where there is none."""
    if style_after is None or style_after not in caption:
        return caption, ""
    subject, _, style = caption.rpartition(style_after)
    return subject, style


class FeatureScores(ExtendedImageMetric):
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
        # The most that any of them asks for.
        self._captions_again = max(part.captions for part in scores)
        self._pictures = max(part.pictures for part in scores)
        self._training_images = max(part.training_images for part in scores)
        self._statistics = RealStatistics(self.extractor, f"features {images}")
        self._of_training = RealStatistics(self.extractor, f"training {self._training_images}")
        self._device = torch.device("cpu")
        self._kept: dict[bool, list[Float[Tensor, "b f"]]] = {True: [], False: []}
        self._captions: list[str] = []
        self._real_key: str | None = None
        # Of the last batch's first captions the pictures so far, and of those before.
        self._drawing: list[Float[Tensor, "b f"]] = []
        self._again: list[Float[Tensor, "b k f"]] = []
        self._train: list[Float[Tensor, "b f"]] = []
        self._train_key: str | None = None
        self._train_kept = self._train_shared = True

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

    @property
    def sees_training(self) -> bool:
        return self._training_images > 0

    def needs_training(self, key: str) -> int:
        if key == self._train_key:
            return 0
        self._train_key, self._train, self._train_shared = key, [], False
        self._train_kept = self._of_training.read(key, self._take_training)
        # The first process holds them for all.
        return 0 if self._train_kept or process_rank() else self._training_images

    def update_training(self, images: Images) -> None:
        self._device = images.device
        self._train.append(self.extractor(images).cpu())

    def needs_again(self) -> int:
        return self._pictures - 1 if self._drawing else 0

    def update_again(self, images: Images) -> None:
        self._drawing.append(self.extractor(images[: len(self._drawing[0])]).cpu())
        if len(self._drawing) == self._pictures:
            self._again.append(torch.stack(self._drawing, dim=1))
            self._drawing = []

    def update(self, images: Images, captions: Sequence[str], *, real: bool) -> None:
        self._device = images.device
        # Real and generated images come in the same order, and so as many of each are taken.
        left = -(-self.images // process_count()) - sum(map(len, self._kept[real]))
        if left > 0:
            self._kept[real].append(self.extractor(images[:left]).cpu())
            if not real:
                self._captions += captions[:left]
                wanted = -(-self._captions_again // process_count()) - sum(map(len, self._again))
                self._drawing = [self._kept[False][-1][:wanted]] if wanted > 0 else []

    def compute(self, key: str) -> dict[str, float]:
        real, fake = (self._all(self._kept[which]) for which in (True, False))
        train = self._all_training()
        again = self._all([part.flatten(1) for part in self._again], self._pictures * self.extractor.dim)
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
        compared = FeatureSets(real, fake, captions, again.unflatten(1, (self._pictures, -1)), train)
        return {name: value for part in self.parts for name, value in self._score(part, compared)}

    def reset(self) -> None:
        self._kept[False], self._captions = [], []
        self._drawing, self._again = [], []

    def _score(self, part: FeatureScore, compared: FeatureSets) -> list[tuple[str, float]]:
        names = part.named(self.extractor)
        try:
            return list(zip(names, part(compared), strict=True))
        except UserError as error:
            log.warning("%s cannot be told: %s", ", ".join(names), error)
            return [(name, float("nan")) for name in names]

    def _take_real(self, held: dict[str, Tensor]) -> None:
        self._kept[True] = [held["features"].reshape(-1, self.extractor.dim)]

    def _all_training(self) -> Float[Tensor, "t f"]:
        """On every process, what the first one holds; shared once, and kept once."""
        if not self._train_shared:
            self._train, self._train_shared = [self._all(self._train)], True
            if not self._train_kept and len(self._train[0]):
                self._train_kept = True
                self._of_training.write(str(self._train_key), {"features": self._train[0]})
        return torch.cat([torch.zeros(0, self.extractor.dim), *self._train])

    def _take_training(self, held: dict[str, Tensor]) -> None:
        self._train = [held["features"].reshape(-1, self.extractor.dim)]

    def _all(self, parts: list[Float[Tensor, "b f"]], width: int | None = None) -> Float[Tensor, "n f"]:
        return all_rows(torch.cat([torch.zeros(0, width or self.extractor.dim), *parts]), self._device)


def _at_least_one(number: int) -> int:
    if number < 1:
        raise UserError(f"{number} must be 1 or more")
    return number
