"""Frozen networks that score generated pictures by their captions."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import quality
from imagen_pl.errors import UserError
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.losses.adversarial import NonSaturating
from imagen_pl.losses.base import LossInputs
from imagen_pl.losses.clip_guidance import BackboneGuidance, ImageTextGuidance
from imagen_pl.metrics.frechet import FrechetDistance
from imagen_pl.models.discriminators.base import ImageFeatures
from imagen_pl.models.discriminators.joint import JointDiscriminator
from imagen_pl.models.discriminators.projected import ProjectedDiscriminator
from imagen_pl.models.pretrained.backbones import TimmBackbone, frozen_names
from imagen_pl.models.pretrained.dual_encoders import TransformersDualEncoder
from imagen_pl.types import Growth
from tests.helpers.fakes import TinyText
from tests.helpers.networks import small_discriminator
from tests.helpers.text_encoders import save_bert, save_clip, save_siglip
from tests.helpers.training import SHORT, SaveAt, assert_same, tiny_gan, train, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")
CAPTIONS = ["red heart", "blue cat", "a cupcake, fluent style", "heart"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dual")
    return {"clip": save_clip(folder / "clip"), "siglip": save_siglip(folder / "siglip")}


@pytest.fixture
def clip(folders: dict[str, Path]) -> TransformersDualEncoder:
    return TransformersDualEncoder(str(folders["clip"]))


def pictures(count: int = 4, side: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def inputs(images: Tensor, captions: list[str]) -> LossInputs:
    text = TinyText().encode(captions)
    features = ImageFeatures({}, images.flatten(1)[:, :8])
    return LossInputs(images, features, text, Growth(images.shape[-1]), captions)


# ------------------------------------------------------------------ dual encoders


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_vectors_equal_those_of_transformers(folders: dict[str, Path], family: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder, path = TransformersDualEncoder(str(folders[family])), str(folders[family])
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    filled = {"padding": "max_length", "max_length": 24} if family == "siglip" else {"padding": False}

    with torch.no_grad():
        expected = model.get_image_features(pixel_values=((pictures() + 1) / 2 - mean) / std).pooler_output
        ids = [tokenizer(c, return_tensors="pt", **filled).input_ids for c in CAPTIONS]
        words = torch.cat([model.get_text_features(input_ids=i).pooler_output for i in ids])
    images, texts = encoder.images(pictures()), encoder.texts(CAPTIONS, torch.device("cpu"))

    torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(texts, words, atol=1e-5, rtol=1e-4)
    assert images.std(0).mean() > 1e-3
    assert texts.std(0).mean() > 1e-3


def test_captions_are_encoded_once_and_independently(
    clip: TransformersDualEncoder, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run encodes captions in other batches; its numbers are equal to the bit."""
    read: list[str] = []
    reading = TransformersDualEncoder._text

    def text(self: TransformersDualEncoder, network: Any, caption: str) -> Any:
        read.append(caption)
        return reading(self, network, caption)

    monkeypatch.setattr(TransformersDualEncoder, "_text", text)
    device = torch.device("cpu")

    together = clip.texts([*CAPTIONS, CAPTIONS[0]], device)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = clip.texts(CAPTIONS[::-1], device)
        alone = TransformersDualEncoder(str(folders["clip"])).texts(CAPTIONS[2:3], device)

    assert read == [*CAPTIONS, CAPTIONS[2]]
    assert torch.equal(again.flip(0), together[:4])
    assert torch.equal(together[4], together[0])
    assert torch.equal(alone[0], together[2])
    assert not together.requires_grad


def test_cached_captions_are_dropped_before_they_fill_the_memory(
    clip: TransformersDualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagen_pl.models.pretrained.dual_encoders._MAX_CACHED", 3)
    device = torch.device("cpu")
    first = clip.texts(CAPTIONS[:2], device)
    clip.texts(CAPTIONS[2:], device)
    assert len(clip._cache) == 2
    assert torch.equal(clip.texts(CAPTIONS[:2], device), first)


def test_model_that_is_not_a_dual_encoder_gives_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dual encoder nobody/nothing: there is no such folder") as output:
        TransformersDualEncoder("nobody/nothing").load()
    assert "\n" not in str(output.value)
    with pytest.raises(UserError, match=r"dual encoder .*: BertModel has no get_image_features"):
        TransformersDualEncoder(str(save_bert(tmp_path / "bert"))).load()


# ------------------------------------------------------------------ 1 - cosine


def test_guidance_is_one_minus_the_cosine(clip: TransformersDualEncoder) -> None:
    guidance, images = ImageTextGuidance(clip, from_resolution=8), pictures()

    loss = guidance(small_discriminator(), NonSaturating(), inputs(images, CAPTIONS))

    vectors = zip(clip.images(images), clip.texts(CAPTIONS, torch.device("cpu")), strict=True)
    cosines = torch.stack([a @ b / (a.norm() * b.norm()) for a, b in vectors])
    torch.testing.assert_close(loss, 1 - cosines)
    torch.testing.assert_close(guidance.take_notes()["cosine"], cosines.mean())


def test_dropped_captions_give_no_loss(clip: TransformersDualEncoder) -> None:
    guidance, images = ImageTextGuidance(clip), pictures().requires_grad_()

    loss = guidance(small_discriminator(), NonSaturating(), inputs(images, ["red heart", "", "", "heart"]))
    loss.sum().backward()

    assert images.grad is not None
    assert images.grad.flatten(1).any(1).tolist() == [True, False, False, True]
    assert (loss[1:3] == 0).all()


def test_guidance_trains_images_to_match_their_captions(clip: TransformersDualEncoder) -> None:
    """Descent on eight pictures raises each one's cosine with its own caption."""
    captions = [
        f"{colour} {thing}" for colour in ("red", "blue") for thing in ("heart", "cat", "cupcake", "a")
    ]
    guidance = ImageTextGuidance(clip)
    images = pictures(8).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.1)

    def cosines() -> Tensor:
        texts = clip.texts(captions, torch.device("cpu"))
        return F.cosine_similarity(clip.images(images)[:, None], texts, dim=2).detach()

    before = cosines().diag()
    for _ in range(60):
        optimizer.zero_grad()
        guidance(small_discriminator(), NonSaturating(), inputs(images, captions)).sum().backward()
        optimizer.step()

    assert (cosines().diag() > before + 0.1).all()
    assert (cosines().diag() > 0.85).all()


def test_encoder_is_frozen_and_not_saved(clip: TransformersDualEncoder) -> None:
    guidance, images = ImageTextGuidance(clip), pictures().requires_grad_()

    guidance(small_discriminator(), NonSaturating(), inputs(images, CAPTIONS)).sum().backward()

    assert list(guidance.parameters()) == []
    assert guidance.state_dict() == {}
    assert all(p.grad is None and not p.requires_grad for p in clip._network.parameters())


def test_loss_applies_in_the_generator_step_from_its_resolution(clip: TransformersDualEncoder) -> None:
    guidance = ImageTextGuidance(clip, generator_weight=0.2)
    assert [guidance.weight("generator", 0, side) for side in (8, 16, 32, 64)] == [0, 0, 0.2, 0.2]
    assert guidance.weight("discriminator", 0, 64) == 0


# ------------------------------------------------------------------ a backbone and the text encoder


def taught(maps: list[int] | None = None) -> BackboneGuidance:
    torch.manual_seed(3)
    backbone = TimmBackbone("efficientnet_lite0", size=16, maps=maps or [0, 1, 2])
    return BackboneGuidance(backbone, text_dim=16, embed_dim=16, from_resolution=8)


def test_linear_maps_fit_eight_pairs_and_then_train_images() -> None:
    guidance = taught()
    captions = [f"{i} of eight" for i in range(8)]
    real = inputs(pictures(8), captions)
    optimizer = torch.optim.Adam(guidance.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        guidance(small_discriminator(), NonSaturating(), real).mean().backward()
        optimizer.step()

    with torch.no_grad():
        right = guidance(small_discriminator(), NonSaturating(), real)
        wrong = guidance(
            small_discriminator(), NonSaturating(), inputs(pictures(8), captions[1:] + captions[:1])
        )
    assert right.max() < 0.2
    assert wrong.min() > 2
    images = pictures(8, seed=1).requires_grad_()
    guidance(small_discriminator(), NonSaturating(), inputs(images, captions)).sum().backward()
    assert images.grad is not None
    assert images.grad.flatten(1).any(1).all()


def test_only_the_linear_maps_are_trained_and_saved() -> None:
    guidance = taught()
    assert set(guidance.state_dict()) == {
        "image.weight",
        "image.bias",
        "text.weight",
        "text.bias",
        "log_scale",
    }
    assert guidance.image.in_features == 16 + 24 + 40


def test_sizes_are_checked_before_the_run() -> None:
    wrong = BackboneGuidance(TimmBackbone(size=16, maps=[0]), text_dim=7)
    with pytest.raises(ValueError, match=r"BackboneGuidance\.text_dim is 7, but .* is 16: set it to 16"):
        tiny_gan(losses=[wrong])


def test_discriminator_s_own_features_give_the_same_loss() -> None:
    own = taught([1, 2])
    shared = BackboneGuidance(None, text_dim=16, embed_dim=16, from_resolution=8, channels=24 + 40)
    shared.load_state_dict(own.state_dict())
    assert own.backbone is not None
    given = inputs(pictures(), CAPTIONS)
    given.features.frozen = own.backbone(given.images)

    expected = own(small_discriminator(), NonSaturating(), given)
    loss = shared(small_discriminator(), NonSaturating(), given)

    torch.testing.assert_close(loss, expected)


def test_discriminator_s_backbone_is_checked_before_the_run() -> None:
    backbone = TimmBackbone("efficientnet_lite0", size=16, maps=[1, 2])
    first = small_discriminator()
    projected = ProjectedDiscriminator(backbone, list(first.resolutions), text_dim=first.text_dim)
    joint = JointDiscriminator([first, projected])
    wrong = BackboneGuidance(None, text_dim=joint.text_dim, channels=24)
    with pytest.raises(ValueError, match=r"BackboneGuidance\.channels is 24, but .* is 64: set it to 64"):
        wrong.check(joint)
    BackboneGuidance(None, text_dim=joint.text_dim, channels=64).check(joint)
    with pytest.raises(ValueError, match="reads no frozen network: name a backbone"):
        wrong.check(small_discriminator())


# ------------------------------------------------------------------ in a run


@pytest.mark.parametrize("kind", ["clip", "backbone"])
def test_a_guided_run_resumes_to_the_bit(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    def guided() -> list:
        if kind == "backbone":
            return [taught([0])]
        return [ImageTextGuidance(TransformersDualEncoder(str(folders["clip"])), from_resolution=8)]

    systems = [tiny_gan(losses=guided(), accumulate=2) for _ in range(4)]
    whole, stopped, resumed, unguided = systems
    file = tmp_path / "stopped.ckpt"
    train(whole, 56, stages=SHORT)
    train(stopped, 24, [SaveAt({24: file})], stages=SHORT)
    train(resumed, 56, ckpt_path=file, stages=SHORT)
    guidance = unguided.losses[0]
    assert isinstance(guidance, BackboneGuidance | ImageTextGuidance)
    guidance.generator_weight = 0.0
    train(unguided, 56, stages=SHORT)

    assert_same(weights_of(whole), weights_of(resumed))
    drawn = zip(whole.generator.parameters(), unguided.generator.parameters(), strict=True)
    assert not all(torch.equal(mine, theirs) for mine, theirs in drawn)


def test_scoring_with_a_training_network_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gan = tiny_gan(losses=[taught([0])], metrics=[FrechetDistance(kernel_images=0)])
    monkeypatch.setattr(FrechetDistance, "prepare", lambda self, fid_weights=None: None)
    assert frozen_names(gan.discriminator, gan.losses) == ["efficientnet_lite0"]

    with caplog.at_level(logging.WARNING):
        train(gan, 8, [SaveAt({8: tmp_path / "a.ckpt"})], stages=SHORT)

    assert "efficientnet_lite0 was used to train this model" in caplog.text
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["teacher_networks"] == ["efficientnet_lite0"]
    model = cast(TextToImage, SimpleNamespace(description={"teacher_networks": ["efficientnet_lite0"]}))
    with pytest.raises(
        UserError, match=r"a has learnt from efficientnet_lite0.*--extractor efficientnet_lite1$"
    ):
        quality.check_teachers(Path("a"), model, quality.EXTRACTORS["efficientnet_lite0"]())
    quality.check_teachers(Path("a"), model, quality.EXTRACTORS["efficientnet_lite1"]())
