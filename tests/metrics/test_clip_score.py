"""CLIP and DINOv2 as extractors of scores, and the CLIP score."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen_pl.metrics.clip_score import ClipScore
from imagen_pl.metrics.extractors import DualEncoderFeatures, TransformersFeatures
from imagen_pl.metrics.feature_scores import GaussianDiscrepancy
from imagen_pl.models.pretrained.dual_encoders import TransformersDualEncoder
from tests.helpers.metrics import images_of
from tests.helpers.text_encoders import save_clip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "clip")


def test_name_cmmd_is_used_for_its_own_network_only(clip_folder: Path) -> None:
    small = DualEncoderFeatures(TransformersDualEncoder(str(clip_folder)))
    large = DualEncoderFeatures(TransformersDualEncoder("openai/clip-vit-large-patch14-336"))
    assert GaussianDiscrepancy().named(small) == ("mmd_clip",)
    assert GaussianDiscrepancy().named(large) == ("cmmd",)
    assert GaussianDiscrepancy(sigma=5).named(large) == ("mmd_clip_vit_large_patch14_336",)


def test_clip_features_equal_those_of_transformers(clip_folder: Path) -> None:
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


def test_missing_network_gives_one_line_error(tmp_path: Path) -> None:
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


def test_clip_score_equals_torchmetrics(tmp_path: Path) -> None:
    """Of a CLIP with the preprocessing that is published with CLIP, picture by picture."""
    from torchmetrics.functional.multimodal import clip_score
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPVisionConfig

    folder = save_clip(tmp_path / "clip")
    model = CLIPModel.from_pretrained(folder)
    vision = model.config.vision_config
    assert isinstance(vision, CLIPVisionConfig)
    side = vision.image_size
    assert isinstance(side, int)
    seen_by = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)
    seen_by.save_pretrained(folder)
    reference = (cast(CLIPModel, _Bare(model)), CLIPProcessor(seen_by, AutoTokenizer.from_pretrained(folder)))
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
    metric.update(images, captions, real=True)  # is ignored
    found = metric.compute("key")

    said = [0, 1, 3, 4, 5]
    seen = encoder.images(images[said].float() / 127.5 - 1)
    read = encoder.texts([captions[i] for i in said], torch.device("cpu"))
    expected = 100 * F.cosine_similarity(seen, read, dim=1).clamp(min=0).mean()
    assert found == {"clip_score_clip": pytest.approx(float(expected), rel=1e-5)}
    metric.reset()
    assert math.isnan(metric.compute("key")["clip_score_clip"])
