"""Validation: which images it gives to the scores, and how often."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.sources.folder import FolderSource
from imagen_pl.metrics.evaluation import diversity
from imagen_pl.metrics.feature_scores import (
    CaptionRetrieval,
    Diversity,
    FeatureScores,
    Memorisation,
    PrecisionRecall,
)
from imagen_pl.training.validation_metrics import Validation
from imagen_pl.types import CaptionedBatch
from tests.helpers.image_files import write_photos
from tests.helpers.metrics import CAPTIONS, Blocks, images_of, near

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder for features of real images."""
    monkeypatch.setenv("IMAGEN_PL_CACHE", str(tmp_path / "cache"))


def given(images: Tensor, captions: list[str] = CAPTIONS, size: int = 16) -> list[CaptionedBatch]:
    """Batches as validation has them."""
    return [
        cast(
            CaptionedBatch, SimpleNamespace(images=images[at : at + size], captions=captions[at : at + size])
        )
        for at in range(0, len(images), size)
    ]


def test_diversity_is_of_the_first_captions_drawn_again() -> None:
    """The k-th pictures of a caption are its first by k levels brighter."""
    real, fake = images_of(40, seed=0), images_of(40, seed=1) // 2
    metrics = [FeatureScores([Diversity(captions=20, pictures=3), PrecisionRecall()], Blocks())]
    metrics.append(FeatureScores([Diversity(captions=5, pictures=2)], Blocks()))
    validation = Validation(metrics)
    trainer = SimpleNamespace(datamodule=None, world_size=1, limit_val_batches=1.0, sanity_checking=False)
    drawn = 0
    found: dict[str, float] = {}
    for _ in range(2):  # the second time as the first
        validation.start(cast(Trainer, trainer), 32)
        for batch, part in zip(given(real), fake.split(16), strict=True):

            def draw(time: int, part: Tensor = part) -> Tensor:
                nonlocal drawn
                drawn += 1
                return part + 10 * time

            validation.update(batch, part, draw)
        found = validation.finish()
    assert drawn == 2 * (2 + 2)  # none for the last batch

    features = [Blocks()(fake + 10 * time) for time in range(3)]
    several = torch.stack(features, dim=1)
    # Both have the same name, and the last one stands.
    assert found["diversity_blocks"] == pytest.approx(diversity(several[:5, :2], Blocks()(real)))
    alone = FeatureScores([Diversity(captions=20, pictures=3)], Blocks())
    alone.update(real, CAPTIONS, real=True)
    alone.update(fake, CAPTIONS, real=False)
    assert alone.further_images_needed() == 2
    for time in (1, 2):
        alone.update_further(fake + 10 * time)
    assert alone.further_images_needed() == 0
    assert alone.compute("key")["diversity_blocks"] == pytest.approx(diversity(several[:20], Blocks()(real)))


def test_training_images_are_read_once_per_resolution_and_not_in_sanity_checks(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", count=12, side=16)
    data = CaptionedImages(FolderSource(str(tmp_path / "photos")), resolution=16, num_workers=0)
    data.setup()
    metric = FeatureScores([Memorisation(training_images=9)], Blocks())
    validation = Validation([metric, FeatureScores([PrecisionRecall()], Blocks())])

    def start(resolution: int, sanity_checking: bool = False) -> int:
        before = metric.extractor.seen  # type: ignore[attr-defined]
        trainer = SimpleNamespace(
            datamodule=data,
            world_size=1,
            limit_val_batches=1.0,
            sanity_checking=sanity_checking,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        validation.start(cast(Trainer, trainer), resolution)
        return int(metric.extractor.seen - before)  # type: ignore[attr-defined]

    assert start(8, sanity_checking=True) == 0
    assert [start(8), start(8), start(16), start(16)] == [9, 0, 9, 0]
    same = CaptionedImages(FolderSource(str(tmp_path / "photos")), resolution=16, val_split="train")
    assert same.training_fingerprint is None


def no_other(_: int) -> Tensor:
    raise AssertionError("one picture a caption is enough")


def test_cache_depends_on_the_number_of_processes() -> None:
    """Rows are distributed in turn, so two processes keep them in another order."""

    def start(world_size: int) -> tuple[Validation, FeatureScores]:
        metric = FeatureScores([CaptionRetrieval(distractors=9)], Blocks())
        trainer = SimpleNamespace(
            datamodule=None, world_size=world_size, limit_val_batches=1.0, sanity_checking=False
        )
        validation = Validation([metric])
        validation.start(cast(Trainer, trainer), 32)
        return validation, metric

    def batch(rows: slice) -> CaptionedBatch:
        return cast(CaptionedBatch, SimpleNamespace(images=real[rows], captions=CAPTIONS[rows]))

    real = images_of(40, seed=0)
    two, metric = start(2)
    for rows in (slice(0, None, 2), slice(1, None, 2)):  # as gathered
        two.update(batch(rows), near(real)[rows], no_other)
    of_two = two.finish()
    one, metric = start(1)
    one.update(batch(slice(None)), near(real), no_other)
    assert one.finish()["top1_blocks"] > 0.9
    assert of_two["top1_blocks"] > 0.9
    assert metric.extractor.seen == 80  # type: ignore[attr-defined]
    again, metric = start(2)
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        again.update(batch(rows), near(real)[rows], no_other)
    assert again.finish() == of_two
    assert metric.extractor.seen == 40  # type: ignore[attr-defined]
