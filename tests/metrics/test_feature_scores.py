"""Feature scores in validation: values, names, cached real images, training images, processes."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.emoji import EmojiSource
from imagen_pl.data.transforms import decode
from imagen_pl.errors import UserError
from imagen_pl.metrics.clip_score import ClipScore
from imagen_pl.metrics.distances import gaussian_discrepancy
from imagen_pl.metrics.evaluation import memorisation
from imagen_pl.metrics.extractors import EfficientNetLite0
from imagen_pl.metrics.feature_scores import (
    CaptionRetrieval,
    DensityCoverage,
    Diversity,
    FeatureScore,
    FeatureScores,
    GaussianDiscrepancy,
    Memorisation,
    PrecisionRecall,
    subject_and_style,
)
from imagen_pl.metrics.precision_recall import density_and_coverage, precision_and_recall
from imagen_pl.models.pretrained.dual_encoders import TransformersDualEncoder
from tests.helpers.metrics import CAPTIONS, Blocks, images_of, near
from tests.helpers.text_encoders import save_clip

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY: list[FeatureScore] = [
    PrecisionRecall(),
    DensityCoverage(),
    GaussianDiscrepancy(),
    CaptionRetrieval(distractors=9),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMAGEN_PL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def score(
    metric: FeatureScores,
    real: Tensor,
    fake: Tensor,
    captions: list[str] = CAPTIONS,
    key: str = "key",
    train: Tensor | None = None,
) -> dict[str, float]:
    """As validation does it, in batches of 16."""
    wants_real = metric.needs_real(key)
    if train is not None and metric.needs_training(key):
        metric.update_training(train)
    for at in range(0, len(fake), 16):
        some = captions[: len(fake)][at : at + 16]
        if wants_real:
            metric.update(real[at : at + 16], some, real=True)
        metric.update(fake[at : at + 16], some, real=False)
        if metric.further_images_needed():
            metric.update_further(255 - fake[at : at + 16])
    found = metric.compute(key)
    metric.reset()
    return found


def test_each_metric_equals_its_function() -> None:
    real, fake = images_of(40, seed=0), images_of(40, seed=1, shift=40)
    a, b = (Blocks()(images) for images in (real, fake))

    found = score(FeatureScores(EVERY, Blocks()), real, fake)

    assert tuple(found) == FeatureScores(EVERY, Blocks()).scores
    assert (found["precision_blocks"], found["recall_blocks"]) == precision_and_recall(a, b, 3)
    assert (found["density_blocks"], found["coverage_blocks"]) == density_and_coverage(a, b, 5)
    assert found["mmd_blocks"] == gaussian_discrepancy(a, b)


def test_retrieval_is_at_chance_for_unrelated_images() -> None:
    real = images_of(40, seed=0)
    metric = FeatureScores([CaptionRetrieval(distractors=19)], Blocks())

    right = score(metric, real, near(real))
    wrong = score(metric, real, near(real.roll(2, 0)))  # of the same style

    assert right["top1_blocks"] > 0.9
    assert right["shuffled_top1_blocks"] < 0.2
    assert wrong["top1_blocks"] < 0.2
    assert right["mrr_blocks"] > 0.9 > 0.5 > wrong["mrr_blocks"]


def test_style_is_parsed_from_a_caption() -> None:
    assert subject_and_style("waving hand, medium tone, noto style", ", ") == (
        "waving hand, medium tone",
        "noto style",
    )
    assert subject_and_style("a dog", ", ") == ("a dog", "")
    assert subject_and_style("a dog, a cat", None) == ("a dog, a cat", "")


def test_too_few_images_for_one_score_leave_the_others(caplog: pytest.LogCaptureFixture) -> None:
    real = images_of(8, seed=0)
    with caplog.at_level(logging.WARNING):
        found = score(FeatureScores(EVERY, Blocks()), real, near(real))
    assert math.isnan(found["top1_blocks"])
    assert not math.isnan(found["precision_blocks"])
    assert "top1_blocks" in caplog.text
    assert "distractors need 10" in caplog.text


def test_features_of_real_images_are_computed_once_and_cached() -> None:
    real, fake = images_of(40, seed=0), near(images_of(40, seed=0))
    metric = FeatureScores(EVERY, Blocks())
    found = score(metric, real, fake)
    assert metric.extractor.seen == 80  # type: ignore[attr-defined]
    other = FeatureScores(EVERY, Blocks())
    assert score(other, real, fake) == found
    assert other.extractor.seen == 40  # type: ignore[attr-defined]
    assert FeatureScores(EVERY, Blocks()).needs_real("another set")
    assert FeatureScores(EVERY, Blocks(), images=20).needs_real("key")


def test_damaged_cache_file_is_computed_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    real, fake = images_of(40, seed=0), near(images_of(40, seed=0))
    found = score(FeatureScores(EVERY, Blocks()), real, fake)
    (file,) = (cache / "real").iterdir()
    torch.save({"features": torch.zeros(3, 5)}, file)
    with caplog.at_level(logging.WARNING):
        assert score(FeatureScores(EVERY, Blocks()), real, fake) == found
    assert "is damaged" in caplog.text


def test_number_of_compared_images_is_limited() -> None:
    real, fake = images_of(40, seed=0), near(images_of(40, seed=0))
    few = score(FeatureScores(EVERY, Blocks(), images=24), real, fake)
    assert few == score(FeatureScores(EVERY, Blocks()), real[:24], fake[:24], key="24")


def test_training_images_are_read_once_for_memorisation(cache: Path) -> None:
    real, fake, train = images_of(40, seed=0), images_of(40, seed=1), images_of(70, seed=2)
    copies = near(train[:40], spread=2)

    def validate(metric: FeatureScores, fake: Tensor, key: str = "training") -> dict[str, float]:
        wanted = metric.needs_training(key)
        assert wanted in (0, 50)
        for part in train[:wanted].split(20):
            metric.update_training(part)
        return score(metric, real, fake)

    metric = FeatureScores([Memorisation(training_images=50)], Blocks())
    new, old = validate(metric, fake), validate(metric, copies)
    expected = memorisation(Blocks()(fake), Blocks()(real), Blocks()(train[:50]))
    assert new["memorisation_ratio_blocks"] == pytest.approx(expected.ratio)
    assert new["memorisation_near_blocks"] == pytest.approx(expected.near)
    assert old["memorisation_near_blocks"] == 1 > 0.3 > old["memorisation_ratio_blocks"]
    assert metric.extractor.seen == 50 + 40 + 2 * 40  # type: ignore[attr-defined]
    other = FeatureScores([Memorisation(training_images=50)], Blocks())
    assert validate(other, fake) == new
    assert other.extractor.seen == 40  # type: ignore[attr-defined]
    assert other.needs_training("another set") == 50


def test_without_training_images_memorisation_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    real = images_of(20, seed=0)
    with caplog.at_level(logging.WARNING):
        found = score(FeatureScores([Memorisation(), PrecisionRecall()], Blocks()), real, near(real))
    assert math.isnan(found["memorisation_ratio_blocks"])
    assert not math.isnan(found["precision_blocks"])
    assert "validation has no training images to compare with" in caplog.text


def test_bad_settings_raise() -> None:
    with pytest.raises(UserError, match="pictures 1 must be 2 or more"):
        Diversity(pictures=1)
    with pytest.raises(UserError, match="must name one or more"):
        FeatureScores([])
    with pytest.raises(UserError, match="0 must be 1 or more"):
        PrecisionRecall(neighbours=0)
    with pytest.raises(UserError, match="sigma 0 must be above 0"):
        GaussianDiscrepancy(sigma=0)


# ------------------------------------------------------------------ two processes


def _share_of_scores(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    real = images_of(40, seed=0)
    at = slice(0, 16) if rank == 0 else slice(16, 40)
    found = []
    for _ in range(2):  # the second takes the real images from the disk
        metric = FeatureScores([*EVERY, Diversity(captions=32, pictures=2), Memorisation()], Blocks())
        found.append(score(metric, real[at], near(real)[at], CAPTIONS[at], train=images_of(60, seed=3)))
    clip = ClipScore(TransformersDualEncoder(f"{folder}/clip"))
    clip.update(near(real)[at], CAPTIONS[at], real=False)
    found = [each | clip.compute("key") for each in found]
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    encoder = TransformersDualEncoder(str(save_clip(tmp_path / "clip")))
    multiprocessing.spawn(_share_of_scores, (str(tmp_path),), nprocs=2)
    real = images_of(40, seed=0)
    clip = ClipScore(encoder)
    clip.update(near(real), CAPTIONS, real=False)
    metric = FeatureScores([*EVERY, Diversity(captions=32, pictures=2), Memorisation()], Blocks())
    expected = score(metric, real, near(real), key="one process", train=images_of(60, seed=3))
    expected |= clip.compute("key")
    for rank in (0, 1):
        for found in torch.load(tmp_path / f"{rank}.pt"):
            assert found == pytest.approx(expected)


# ------------------------------------------------------------------ ranking of distortions


@pytest.mark.slow
def test_metrics_rank_blur_and_noise() -> None:
    """On the shipped emoji, 120 of one hand, by EfficientNet-Lite0."""
    source = EmojiSource(styles=["noto"])
    rows = source.load(SkippedImages())["train"][:240:2]
    real = torch.stack([decode(source.image(row), 32) for row in rows])
    captions = [row.captions[0] for row in rows]

    def blur(side: int) -> Tensor:
        small = F.interpolate(real.float(), (side, side), mode="area")
        return F.interpolate(small, (32, 32), mode="bilinear").round().to(torch.uint8)

    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, real.shape, generator=draw, dtype=torch.uint8)
    metric = FeatureScores(
        [PrecisionRecall(), DensityCoverage(), GaussianDiscrepancy(), CaptionRetrieval()], EfficientNetLite0()
    )
    found = [score(metric, real, fake, captions) for fake in (real, blur(16), blur(8), noise)]
    values = {
        name.removesuffix("_efficientnet_lite0"): [each[name] for each in found] for name in metric.scores
    }

    sharp, light, heavy, nothing = values["mmd"]
    assert sharp < light < heavy < nothing
    for name in ("coverage", "top1", "top5", "mrr"):
        sharp, light, heavy, nothing = values[name]
        assert sharp > light > heavy > nothing, name
        assert sharp > 0.9 > nothing, name
    sharp, light, heavy, nothing = values["recall"]
    assert sharp == 1 > light > heavy == nothing == 0
    # A few real images far from the others have balls wide enough for blurred ones (arXiv:2002.09797,
    # section 3.1), so that precision and density do not order the two blurs.
    for name in ("precision", "density"):
        sharp, light, heavy, nothing = values[name]
        assert sharp > max(light, heavy) > nothing == 0, name
