"""Validation metrics: which are available, and which still need the real images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import UInt8
from lightning.pytorch import Trainer
from torch import Tensor

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.progress import with_progress
from imagen_pl.imaging.transparency import on_white
from imagen_pl.metrics.base import ExtendedImageMetric, ImageMetric
from imagen_pl.metrics.extractors import InceptionV3
from imagen_pl.metrics.frechet import FrechetDistance
from imagen_pl.types import CaptionedBatch

log = logging.getLogger(__name__)


class Validation:
    """The metrics of a run.

    Args:
        metrics: the configured metrics.
        fid_weights: file with Inception's weights; it adds FID if no metric uses Inception.

    Attributes:
        metrics: the metrics that are available; complete after `prepare`.
        unavailable: names of the scores that are not available, for example val/fid.
    """

    def __init__(self, metrics: Sequence[ImageMetric], fid_weights: str | None = None) -> None:
        self.metrics, self.fid_weights = list(metrics), fid_weights
        self.unavailable: set[str] = set()
        self._reported: set[str] = set()
        self._real_key = ""
        self._needs_real: list[bool] = []

    def prepare(self, trainer: Trainer, teacher_networks: Sequence[str] = ()) -> None:
        """Load the feature extractors; a score that is not available is skipped with a one-line warning.

        Args:
            trainer: trainer of the run.
            teacher_networks: names of the frozen networks that the model or an earlier one was trained with.
        """
        extractors = [getattr(metric, "extractor", None) for metric in self.metrics]
        if self.fid_weights is not None and not any(isinstance(e, InceptionV3) for e in extractors):
            self.metrics.append(FrechetDistance(InceptionV3(self.fid_weights)))
        kept = []
        for metric in self.metrics:
            problem = metric.prepare(self.fid_weights)
            if trainer.strategy.reduce_boolean_decision(problem is None, all=True):
                kept.append(metric)
                continue
            names = ", ".join(f"val/{name}" for name in metric.scores)
            log.warning("%s is not computed: %s", names, problem or "another process could not prepare it")
            self.unavailable |= {f"val/{name}" for name in metric.scores}
        self.metrics = kept
        self.warn_of_teacher_scores(teacher_networks)

    def warn_of_teacher_scores(self, teacher_networks: Sequence[str]) -> None:
        """Warn, once a network, if a metric uses features of a network that the model was trained with."""
        extractors = (getattr(metric, "extractor", None) for metric in self.metrics)
        scoring = {getattr(extractor, "name", "") for extractor in extractors}
        for name in sorted((scoring & {*teacher_networks}) - self._reported):
            log.warning(
                "%s was used to train this model, so its scores are too good: use another extractor", name
            )
            self._reported.add(name)

    def start(self, trainer: Trainer, resolution: int) -> None:
        """Find out which metrics already have features of the real images at this resolution."""
        data: Any = getattr(trainer, "datamodule", None)
        # Features are cached in the order in which the processes provide them, to be paired with images.
        seen = [getattr(data, "fingerprint", "data"), resolution, trainer.world_size]
        limit = trainer.limit_val_batches
        if isinstance(limit, int) or limit < 1:  # a number of batches, or a share of them
            # Which images are skipped depends on how they are split into batches.
            seen += [*trainer.num_val_batches, getattr(data, "val_batch_size", None)]
        self._real_key = "-".join(str(part) for part in seen)
        self._needs_real = [m.needs_real(self._real_key) for m in self.metrics]
        if not trainer.sanity_checking:
            self._add_training_images(trainer, resolution)

    def _add_training_images(self, trainer: Trainer, resolution: int) -> None:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, CaptionedImages):
            return
        for metric in self._extended:
            if not metric.sees_training or data.training_fingerprint is None:
                continue
            number = metric.needs_training(f"{data.training_fingerprint}-{resolution}")
            if number:
                batches = data.pairs.batches(number, resolution, one_a_group=False)
                for batch in with_progress(batches, "features of training images", size=len):
                    metric.update_training(on_white(batch.images.to(trainer.strategy.root_device)))

    @property
    def _extended(self) -> list[ExtendedImageMetric]:
        return [metric for metric in self.metrics if isinstance(metric, ExtendedImageMetric)]

    def update(
        self,
        batch: CaptionedBatch,
        fake: UInt8[Tensor, "b _c h w"],
        draw: Callable[[int], UInt8[Tensor, "b _c h w"]],
    ) -> None:
        """Add a batch and the images generated for its captions; metrics see images with alpha on white.

        Args:
            batch: real images and captions.
            fake: one generated image for each caption.
            draw: draw(k) generates a further image for each caption, the k-th.
        """
        real, fake = on_white(batch.images), on_white(fake)
        for metric, needs_real in zip(self.metrics, self._needs_real, strict=True):
            if needs_real:
                metric.update(real, batch.captions, real=True)
            metric.update(fake, batch.captions, real=False)
        further = [(metric, metric.further_images_needed()) for metric in self._extended]
        for k in range(1, max((number for _, number in further), default=0) + 1):
            again = on_white(draw(k))
            for extended, number in further:
                if k <= number:
                    extended.update_further(again)

    def finish(self) -> dict[str, float]:
        """Scores over all processes, by name without val/."""
        scores: dict[str, float] = {}
        for metric in self.metrics:
            scores |= metric.compute(self._real_key)
            metric.reset()
        return scores
