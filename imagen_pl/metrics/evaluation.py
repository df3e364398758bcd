"""Computes every score of a set of generated images from one network's features, all held in memory.

Pictures are generated images.

Axes: n pictures, m real images, t training images, p prompts, k pictures a prompt, f features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.metrics.distances import frechet_distance, gaussian_discrepancy, kernel_distance
from imagen_pl.metrics.extractors import Extractor
from imagen_pl.metrics.precision_recall import density_and_coverage, nearest, precision_and_recall
from imagen_pl.metrics.retrieval import Retrieval, retrieval_accuracy

T = TypeVar("T")
_ROWS = 1024
_NEAR_SHARE = 0.01  # share of the real images that count as near to a training image


@dataclass(frozen=True)
class MemorisationScores:
    """How near pictures come to training images, compared with held-out real images.

    ratio: median distance of a picture to its nearest training image, divided by that of a held-out real
        image. Far below 1, pictures are copies.
    near: share of pictures that are nearer to a training image than 99% of the held-out real images are.
    training_images: how many training images they were compared with.
    """

    ratio: float
    near: float
    training_images: int


@dataclass(frozen=True)
class Evaluation:
    """Scores in one network's features. A score that cannot be measured is None.

    extractor: name of the network.
    pictures, real: number of pictures and of real images.
    frechet, kernel: distances to the real images of the split; they are FID and KID only with Inception.
    mmd: Gaussian discrepancy; it is CMMD only with the CLIP that defines it.
    precision, recall, density, coverage: see imagen_pl.metrics.precision_recall.
    retrieval, shuffled: retrieval of the caption's real image among real images of the same style; the same
        with captions shuffled.
    diversity: mean distance between pictures of one prompt, divided by that between real images of different
        captions; 0 if all pictures of a prompt are the same.
    drawn_again: numbers of prompts and of pictures per prompt that `diversity` is computed from.
    memorisation: distance to the training images.
    frechet_of_halves: Fréchet distance between two halves of the real images: the part of `frechet` that
        comes from the sample size alone.
    not_measured: for each score that is None, the reason, by name.
    """

    extractor: str
    pictures: int
    real: int
    frechet: float
    kernel: float
    mmd: float
    precision: float | None
    recall: float | None
    density: float | None
    coverage: float | None
    retrieval: Retrieval | None
    shuffled: Retrieval | None
    diversity: float | None
    drawn_again: tuple[int, int] | None
    memorisation: MemorisationScores | None
    frechet_of_halves: float | None
    not_measured: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Evaluation:
        """Restore from the dict that `dataclasses.asdict` made; TypeError or KeyError for any other dict."""
        parts: dict[str, Any] = {
            "retrieval": Retrieval,
            "shuffled": Retrieval,
            "memorisation": MemorisationScores,
        }
        again = saved["drawn_again"]
        return cls(
            **{**saved, "drawn_again": None if again is None else tuple(again)}
            | {name: None if saved[name] is None else kind(**saved[name]) for name, kind in parts.items()}
        )


def evaluate_features(
    extractor: Extractor,
    *,
    pictures: Float[Tensor, "n f"],
    paired: Float[Tensor, "n f"],
    real: Float[Tensor, "m f"],
    subjects: Sequence[str],
    styles: Sequence[str],
    several: Float[Tensor, "p k f"] | None = None,
    train: Float[Tensor, "t f"] | None = None,
    distractors: int = 99,
    seed: int = 0,
    no_train: str = "no training images were given",
) -> Evaluation:
    """Compute all scores.

    Args:
        extractor: network that computed the features.
        pictures: features of one picture for each caption.
        paired: features of the real image of each of these captions.
        real: features of all real images of the split.
        subjects, styles: subjects and styles of the captions.
        several: features of k pictures per prompt, for some prompts.
        train: features of training images, if the split is held out.
        distractors: number of distractors in retrieval.
        seed: seed of the distractors and of the halves.
        no_train: why `train` is None, for `not_measured`.

    Raises:
        UserError: there are fewer than 2 pictures or real images.
    """
    if min(len(pictures), len(real)) < 2:
        raise UserError(
            f"{len(pictures)} pictures and {len(real)} real images are too few to compare: give at least 2, "
            "better 1,000"
        )
    why: dict[str, str] = {}
    precision, recall = _measured(why, "precision recall", precision_and_recall, real, pictures) or (
        None,
        None,
    )
    density, covered = _measured(why, "density coverage", density_and_coverage, real, pictures) or (
        None,
        None,
    )
    found, shuffled = (
        _measured(
            why, "retrieval", retrieval_accuracy, pictures, paired, subjects, styles,
            seed=seed, distractors=distractors, shuffled=shuffle,
        )
        for shuffle in (False, True)
    )  # fmt: skip
    if len(real) < 4:
        why["frechet_of_halves"] = f"{len(real)} real images are too few to halve"
    if several is None:
        why["diversity"] = "one picture per prompt"
    if train is None:
        why["memorisation"] = no_train
    return Evaluation(
        extractor=extractor.name,
        pictures=len(pictures),
        real=len(real),
        frechet=frechet_distance(real, pictures),
        kernel=kernel_distance(real, pictures),
        mmd=gaussian_discrepancy(real, pictures),
        precision=precision,
        recall=recall,
        density=density,
        coverage=covered,
        retrieval=found,
        shuffled=shuffled,
        diversity=None if several is None else diversity(several, paired),
        drawn_again=None if several is None else (len(several), several.shape[1]),
        memorisation=None if train is None else memorisation(pictures, real, train),
        frechet_of_halves=_halves(real, seed),
        not_measured=why,
    )


def diversity(several: Float[Tensor, "p k f"], real: Float[Tensor, "n f"]) -> float:
    """Mean distance of two pictures of a prompt, divided by that of real images of different captions."""
    within = [torch.pdist(pictures.double()).mean() for pictures in several]
    # A block of rows at a time, so that all pairs of a large set need not fit in memory.
    far = sum(float(_distances(rows, real).sum()) for rows in real.split(_ROWS))
    return float(torch.stack(within).mean()) / (far / (len(real) * (len(real) - 1)))


def _distances(a: Float[Tensor, "n f"], b: Float[Tensor, "m f"]) -> Float[Tensor, "n m"]:
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def memorisation(
    pictures: Float[Tensor, "n f"], held_out: Float[Tensor, "m f"], train: Float[Tensor, "t f"]
) -> MemorisationScores:
    """How near pictures come to training images, compared with held-out real images."""
    picture_distances, held_out_distances = nearest(pictures, train), nearest(held_out, train)
    limit = held_out_distances.quantile(_NEAR_SHARE)
    return MemorisationScores(
        ratio=float(picture_distances.median() / held_out_distances.median()),
        near=float((picture_distances < limit).double().mean()),
        training_images=len(train),
    )


def _halves(real: Float[Tensor, "m f"], seed: int) -> float | None:
    if len(real) < 4:
        return None
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    first, second = real[order].tensor_split(2)
    return frechet_distance(first, second)


def _measured(
    why: dict[str, str], names: str, score: Callable[..., T], *features: Any, **settings: Any
) -> T | None:
    """The score; or, if there are too few images, None with the reason stored under each of the names."""
    try:
        return score(*features, **settings)
    except UserError as error:
        why.update(dict.fromkeys(names.split(), str(error)))
        return None
