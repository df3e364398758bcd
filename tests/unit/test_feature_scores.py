"""Scores by features in validation: values, names, kept real images, processes; and the CLIP score."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, distributed, multiprocessing, nn

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.problems import Problems
from imagen_pl.data.sources.emoji import EmojiSource
from imagen_pl.data.sources.folder import FolderSource
from imagen_pl.data.transforms import decode
from imagen_pl.dual_encoders import TransformersDualEncoder
from imagen_pl.errors import UserError
from imagen_pl.metrics.clip_score import ClipScore
from imagen_pl.metrics.distances import gaussian_discrepancy
from imagen_pl.metrics.evaluation import diversity, memorisation
from imagen_pl.metrics.extractors import DualEncoderFeatures, EfficientNetLite0, TransformersFeatures
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
from imagen_pl.metrics.manifolds import density_and_coverage, precision_and_recall
from imagen_pl.types import CaptionedBatch
from imagen_pl.validation import Validation
from tests.unit.data_fixtures import write_photos
from tests.unit.test_frechet import Blocks, images_of
from tests.unit.text_fixtures import save_clip

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY: list[FeatureScore] = [
    PrecisionRecall(),
    DensityCoverage(),
    GaussianDiscrepancy(),
    CaptionRetrieval(distractors=9),
]
CAPTIONS = [f"thing {i}, {'noto' if i % 2 else 'fluent'} style" for i in range(40)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMAGEN_PL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "clip")


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
        if metric.needs_again():
            metric.update_again(255 - fake[at : at + 16])
    found = metric.compute(key)
    metric.reset()
    return found


def near(images: Tensor, seed: int = 5, spread: int = 30) -> Tensor:
    """The same, a little changed."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randint(-spread, spread + 1, images.shape, generator=draw)
    return (images.long() + noise).clamp(0, 255).to(torch.uint8)


def test_each_equals_its_function() -> None:
    real, fake = images_of(40, seed=0), images_of(40, seed=1, shift=40)
    a, b = (Blocks()(images) for images in (real, fake))

    found = score(FeatureScores(EVERY, Blocks()), real, fake)

    assert tuple(found) == FeatureScores(EVERY, Blocks()).scores
    assert (found["precision_blocks"], found["recall_blocks"]) == precision_and_recall(a, b, 3)
    assert (found["density_blocks"], found["coverage_blocks"]) == density_and_coverage(a, b, 5)
    assert found["mmd_blocks"] == gaussian_discrepancy(a, b)


def test_retrieval_finds_what_captions_name_and_by_chance_what_they_do_not() -> None:
    real = images_of(40, seed=0)
    metric = FeatureScores([CaptionRetrieval(distractors=19)], Blocks())

    right = score(metric, real, near(real))
    wrong = score(metric, real, near(real.roll(2, 0)))  # of the same style

    assert right["top1_blocks"] > 0.9
    assert right["shuffled_top1_blocks"] < 0.2
    assert wrong["top1_blocks"] < 0.2
    assert right["mrr_blocks"] > 0.9 > 0.5 > wrong["mrr_blocks"]


def test_a_caption_s_style() -> None:
    assert subject_and_style("waving hand, medium tone, noto style", ", ") == (
        "waving hand, medium tone",
        "noto style",
    )
    assert subject_and_style("a dog", ", ") == ("a dog", "")
    assert subject_and_style("a dog, a cat", None) == ("a dog, a cat", "")


def test_too_few_for_one_score_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    real = images_of(8, seed=0)
    with caplog.at_level(logging.WARNING):
        found = score(FeatureScores(EVERY, Blocks()), real, near(real))
    assert math.isnan(found["top1_blocks"])
    assert not math.isnan(found["precision_blocks"])
    assert "top1_blocks" in caplog.text
    assert "distractors need 10" in caplog.text


def test_real_images_are_seen_once_and_kept() -> None:
    real, fake = images_of(40, seed=0), near(images_of(40, seed=0))
    metric = FeatureScores(EVERY, Blocks())
    found = score(metric, real, fake)
    assert metric.extractor.seen == 80  # type: ignore[attr-defined]
    other = FeatureScores(EVERY, Blocks())
    assert score(other, real, fake) == found
    assert other.extractor.seen == 40  # type: ignore[attr-defined]
    assert FeatureScores(EVERY, Blocks()).needs_real("another set")
    assert FeatureScores(EVERY, Blocks(), images=20).needs_real("key")


def test_a_damaged_file_is_computed_anew(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    real, fake = images_of(40, seed=0), near(images_of(40, seed=0))
    found = score(FeatureScores(EVERY, Blocks()), real, fake)
    (file,) = (cache / "real").iterdir()
    torch.save({"features": torch.zeros(3, 5)}, file)
    with caplog.at_level(logging.WARNING):
        assert score(FeatureScores(EVERY, Blocks()), real, fake) == found
    assert "is damaged" in caplog.text


def test_the_first_so_many_are_compared() -> None:
    real, fake = images_of(40, seed=0), near(images_of(40, seed=0))
    few = score(FeatureScores(EVERY, Blocks(), images=24), real, fake)
    assert few == score(FeatureScores(EVERY, Blocks()), real[:24], fake[:24], key="24")


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
    assert alone.needs_again() == 2
    for time in (1, 2):
        alone.update_again(fake + 10 * time)
    assert alone.needs_again() == 0
    assert alone.compute("key")["diversity_blocks"] == pytest.approx(diversity(several[:20], Blocks()(real)))


def test_memorisation_looks_at_training_images_once(cache: Path) -> None:
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


def test_images_of_training_are_shown_once_a_resolution_and_not_for_a_trial_run(tmp_path: Path) -> None:
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


def test_without_training_images_memorisation_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    real = images_of(20, seed=0)
    with caplog.at_level(logging.WARNING):
        found = score(FeatureScores([Memorisation(), PrecisionRecall()], Blocks()), real, near(real))
    assert math.isnan(found["memorisation_ratio_blocks"])
    assert not math.isnan(found["precision_blocks"])
    assert "there are no images of training apart from those of validation" in caplog.text


def test_bad_settings_are_told() -> None:
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


def no_other(_: int) -> Tensor:
    raise AssertionError("one picture a caption is enough")


def test_another_number_of_processes_looks_at_real_images_anew() -> None:
    """Rows are dealt out in turn, so that what two processes keep stands in another order."""

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


# ------------------------------------------------------------------ what they say of images


@pytest.mark.slow
def test_they_order_blurs_and_noise() -> None:
    """On the shipped emoji, 120 of one hand, by EfficientNet-Lite0."""
    source = EmojiSource(styles=["noto"])
    rows = source.load(Problems())["train"][:240:2]
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


# ------------------------------------------------------------------ networks of transformers


def test_cmmd_is_called_so_with_its_own_network_alone(clip_folder: Path) -> None:
    small = DualEncoderFeatures(TransformersDualEncoder(str(clip_folder)))
    large = DualEncoderFeatures(TransformersDualEncoder("openai/clip-vit-large-patch14-336"))
    assert GaussianDiscrepancy().named(small) == ("mmd_clip",)
    assert GaussianDiscrepancy().named(large) == ("cmmd",)
    assert GaussianDiscrepancy(sigma=5).named(large) == ("mmd_clip_vit_large_patch14_336",)


def test_features_of_clip_are_its_own(clip_folder: Path) -> None:
    encoder = TransformersDualEncoder(str(clip_folder))
    extractor = DualEncoderFeatures(encoder)
    images = images_of(3, seed=0)
    features = extractor(images)
    assert features.shape == (3, extractor.dim)
    assert torch.equal(features, encoder.images(images.float() / 127.5 - 1))


def test_features_of_dinov2_are_its_first_token(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    network = Dinov2Model(config).eval()
    network.save_pretrained(tmp_path / "dinov2-tiny")
    extractor = TransformersFeatures(str(tmp_path / "dinov2-tiny"), size=28)
    images = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8)

    features = extractor(images)

    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    expected = network((images.float() / 255 - mean) / deviation).last_hidden_state[:, 0]
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    assert (extractor.name, extractor.dim) == ("dinov2_tiny", 16)
    assert extractor.frechet_name == "fd_dinov2_tiny"


def test_a_network_that_is_not_there_is_told(tmp_path: Path) -> None:
    problem = TransformersFeatures(str(tmp_path / "none")).prepare()
    assert problem is not None
    assert "none" in problem
    assert "\n" not in problem


class _Bare(nn.Module):
    """transformers from 5.0 on gives vectors among other things, which torchmetrics does not expect."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, *args: Any, **kwargs: Any) -> Tensor:
        return getattr(found := self.model.get_image_features(*args, **kwargs), "pooler_output", found)

    def get_text_features(self, *args: Any, **kwargs: Any) -> Tensor:
        return getattr(found := self.model.get_text_features(*args, **kwargs), "pooler_output", found)


def test_clip_score_is_torchmetrics_(tmp_path: Path) -> None:
    """Of a CLIP with the preprocessing that is published with CLIP, picture by picture."""
    from torchmetrics.functional.multimodal import clip_score
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, CLIPProcessor

    folder = save_clip(tmp_path / "clip")
    model = CLIPModel.from_pretrained(folder)
    side = model.config.vision_config.image_size
    seen_by = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)
    seen_by.save_pretrained(folder)
    reference = (_Bare(model), CLIPProcessor(seen_by, AutoTokenizer.from_pretrained(folder)))
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, side, side), generator=draw, dtype=torch.uint8)
    captions = [f"a heart {k}" for k in range(8)]

    metric = ClipScore(TransformersDualEncoder(str(folder)))
    metric.update(images, captions, real=False)
    each = [
        float(clip_score(image, caption, lambda: reference))
        for image, caption in zip(images, captions, strict=True)
    ]
    assert metric.compute("key")["clip_score_clip"] == pytest.approx(sum(each) / 8, rel=1e-4)
    assert max(each) - min(each) > 0.1


def test_clip_score_is_the_mean_cosine(clip_folder: Path) -> None:
    encoder = TransformersDualEncoder(str(clip_folder))
    metric, images = ClipScore(encoder), images_of(6, seed=0)
    captions = ["a red heart", "a blue heart", "", "a cat", "a dog", "a fox"]
    assert metric.prepare() is None
    assert not metric.needs_real("key")

    metric.update(images[:4], captions[:4], real=False)
    metric.update(images[4:], captions[4:], real=False)
    metric.update(images, captions, real=True)  # counts for nothing
    found = metric.compute("key")

    said = [0, 1, 3, 4, 5]
    seen = encoder.images(images[said].float() / 127.5 - 1)
    read = encoder.texts([captions[i] for i in said], torch.device("cpu"))
    expected = 100 * F.cosine_similarity(seen, read, dim=1).clamp(min=0).mean()
    assert found == {"clip_score_clip": pytest.approx(float(expected), rel=1e-5)}
    metric.reset()
    assert math.isnan(metric.compute("key")["clip_score_clip"])
