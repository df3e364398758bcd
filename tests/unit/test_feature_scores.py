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

from imagen_pl.data.problems import Problems
from imagen_pl.data.sources.emoji import EmojiSource
from imagen_pl.data.transforms import decode
from imagen_pl.dual_encoders import TransformersDualEncoder
from imagen_pl.errors import UserError
from imagen_pl.metrics.clip_score import ClipScore
from imagen_pl.metrics.distances import gaussian_discrepancy
from imagen_pl.metrics.extractors import DualEncoderFeatures, EfficientNetLite0, TransformersFeatures
from imagen_pl.metrics.feature_scores import (
    CaptionRetrieval,
    DensityCoverage,
    FeatureScore,
    FeatureScores,
    GaussianDiscrepancy,
    PrecisionRecall,
    subject_and_style,
)
from imagen_pl.metrics.manifolds import density_and_coverage, precision_and_recall
from imagen_pl.types import CaptionedBatch
from imagen_pl.validation import Validation
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
    metric: FeatureScores, real: Tensor, fake: Tensor, captions: list[str] = CAPTIONS, key: str = "key"
) -> dict[str, float]:
    """As validation does it, in batches of 16."""
    wants_real = metric.needs_real(key)
    for at in range(0, len(fake), 16):
        some = captions[: len(fake)][at : at + 16]
        if wants_real:
            metric.update(real[at : at + 16], some, real=True)
        metric.update(fake[at : at + 16], some, real=False)
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


def test_bad_settings_are_told() -> None:
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
        metric = FeatureScores(EVERY, Blocks())
        found.append(score(metric, real[at], near(real)[at], CAPTIONS[at]))
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
    expected = score(FeatureScores(EVERY, Blocks()), real, near(real), key="one process") | clip.compute(
        "key"
    )
    for rank in (0, 1):
        for found in torch.load(tmp_path / f"{rank}.pt"):
            assert found == pytest.approx(expected)


def test_another_number_of_processes_looks_at_real_images_anew() -> None:
    """Rows are dealt out in turn, so that what two processes keep stands in another order."""

    def start(world_size: int) -> tuple[Validation, FeatureScores]:
        metric = FeatureScores([CaptionRetrieval(distractors=9)], Blocks())
        trainer = SimpleNamespace(datamodule=None, world_size=world_size, limit_val_batches=1.0)
        validation = Validation([metric])
        validation.start(cast(Trainer, trainer), 32)
        return validation, metric

    def batch(rows: slice) -> CaptionedBatch:
        return cast(CaptionedBatch, SimpleNamespace(images=real[rows], captions=CAPTIONS[rows]))

    real = images_of(40, seed=0)
    two, metric = start(2)
    for rows in (slice(0, None, 2), slice(1, None, 2)):  # as gathered
        two.update(batch(rows), near(real)[rows])
    of_two = two.finish()
    one, metric = start(1)
    one.update(batch(slice(None)), near(real))
    assert one.finish()["top1_blocks"] > 0.9
    assert of_two["top1_blocks"] > 0.9
    assert metric.extractor.seen == 80  # type: ignore[attr-defined]
    again, metric = start(2)
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        again.update(batch(rows), near(real)[rows])
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
