"""Setup before the first batch: encoded captions, and which scores are available."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen_pl.callbacks.checkpoint import KeepCheckpoints
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.sources.webdataset import WebDatasetSource
from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.caption_distributions import EnergyMatching
from imagen_pl.metrics.extractors import Extractor
from imagen_pl.metrics.frechet import FrechetDistance
from imagen_pl.models.pretrained.backbones import TimmBackbone
from imagen_pl.models.text.feature_cache import TextCache
from imagen_pl.schedules import Stage
from imagen_pl.types import CaptionedBatch, TextFeatures
from tests.helpers.fakes import MeanColour, TinyText
from tests.helpers.image_files import encoded, noise, write_tar
from tests.helpers.training import AtEachBatch, Remember, tiny_data, tiny_gan, train, weights_of

STAGES = (Stage(8, kimg=1.0, batch_size=8),)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEN_PL_CACHE", str(tmp_path / "cache"))


# ------------------------------------------------------------------ captions


def test_captions_are_encoded_once_and_come_with_the_batch() -> None:
    texts: list[tuple[list[str], TextFeatures | None]] = []
    note = AtEachBatch(before=lambda _, batch: texts.append((batch.captions, batch.text)))
    encoder = TinyText()
    gan = tiny_gan(text_encoder=encoder, metrics=[MeanColour()])
    data = tiny_data(count=20, val_fraction=0.2, caption_dropout=0.3, epoch_kimg=0.048)
    train(gan, 96, [note], data, stages=STAGES)
    # Every caption of training and validation and the empty one, before the first batch; then never again.
    assert sorted(encoder.encoded) == ["", *sorted(f"number {i}" for i in range(20))]
    fresh = TinyText()
    assert any("" in captions for captions, _ in texts)
    for captions, text in texts:
        assert text is not None
        expected = fresh.encode(captions)
        assert torch.equal(text.pooled, expected.pooled)
        assert torch.equal(text.mask, expected.mask)
        assert torch.equal(text.tokens, expected.tokens)


def test_next_run_reuses_the_cached_features() -> None:
    counts = []
    for count in (10, 10, 12):
        encoder = TinyText()
        train(tiny_gan(text_encoder=encoder), 16, data=tiny_data(count=count), stages=STAGES)
        counts.append(sorted(encoder.encoded))
    assert counts == [sorted(f"number {i}" for i in range(10)), [], ["number 10", "number 11"]]


def test_cached_features_train_like_fresh_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The features of the step are the captions' own, whether they come with the batch or not."""
    runs = []
    for cached in (True, False):
        if not cached:
            monkeypatch.setattr(CaptionedImages, "captions", lambda self: None)
        encoder = TinyText()
        gan = tiny_gan(text_encoder=encoder)
        train(gan, 32, stages=STAGES)
        runs.append((weights_of(gan), len(encoder.encoded)))
    (with_cache, once), (without, often) = runs
    assert once == 24
    assert often == 4 * 8  # once a step
    for name, value in with_cache.items():
        assert torch.equal(value, without[name]), name


def test_captions_of_a_stream_are_encoded_in_the_step(tmp_path: Path) -> None:
    for shard in range(3):
        files: dict[str, bytes] = {}
        for i in range(shard * 8, shard * 8 + 8):
            files |= {f"{i:03}.png": encoded(noise(16, 16, seed=i)), f"{i:03}.txt": f"number {i}".encode()}
        write_tar(tmp_path / "shards" / f"{shard}.tar", files)
    texts: list[tuple[list[str], TextFeatures | None]] = []

    def note(_: Any, batch: CaptionedBatch) -> None:
        texts.append((batch.captions, batch.text))

    encoder = TinyText()
    gan = tiny_gan(text_encoder=encoder, metrics=[MeanColour()])
    data = CaptionedImages(WebDatasetSource(str(tmp_path / "shards")), num_workers=0, epoch_kimg=0.024)
    logged = Remember()
    train(gan, 24, [AtEachBatch(before=note)], data, stages=STAGES, logger=logged)
    assert [text for _, text in texts] == [None] * 3
    in_steps = [c for captions, _ in texts for c in captions]  # once a step
    held_out = [f"number {i}" for i in range(16, 24)]
    assert encoder.encoded == in_steps + held_out
    assert not set(in_steps) & set(held_out)
    assert list(logged.column("val/mean_colour")) == [24]
    assert not list((tmp_path / "cache").rglob("*.sqlite"))


def test_cache_depends_on_the_encoder() -> None:
    """Another encoder's features are another file."""
    small, large = TinyText(max_tokens=2), TinyText(max_tokens=8)
    first, second = (TextCache.build(encoder, ["a long caption"]) for encoder in (small, large))
    assert first.path != second.path
    assert first(["a long caption"]).tokens.shape == (1, 2, 16)
    assert second(["a long caption"]).tokens.shape == (1, 8, 16)


# ------------------------------------------------------------------ scores


class Missing(MeanColour):
    """A score that is not available on this machine."""

    asked_for: str | None = "unasked"

    @property
    def scores(self) -> tuple[str, ...]:
        return ("missing", "missing_too")

    def prepare(self, fid_weights: str | None = None) -> str | None:
        self.asked_for = fid_weights
        return "its weights cannot be downloaded: give them with --model.fid_weights"

    def update(self, images: Any, captions: Sequence[str], *, real: bool) -> None:
        raise AssertionError("it was left out")


def test_unavailable_score_is_left_out_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    logged, missing = Remember(), Missing()
    gan = tiny_gan(metrics=[missing, MeanColour()])
    data = tiny_data(val_fraction=0.2, epoch_kimg=0.016)
    with caplog.at_level(logging.WARNING, "imagen_pl"):
        train(gan, 32, data=data, stages=STAGES, logger=logged)
    assert [record.message for record in caplog.records if "is not computed" in record.message] == [
        "val/missing, val/missing_too is not computed: its weights cannot be downloaded: "
        "give them with --model.fid_weights"
    ]
    assert list(logged.column("val/mean_colour")) == [16, 32]
    assert not logged.column("val/missing")
    assert gan.validation.unavailable == {"val/missing", "val/missing_too"}
    assert missing.asked_for is None


@pytest.mark.parametrize("others", [[], [MeanColour()]], ids=["no score is left", "others are left"])
def test_checkpoints_are_saved_if_their_score_is_unavailable(
    others: list[MeanColour], tmp_path: Path
) -> None:
    gan = tiny_gan(metrics=[Missing(), *others])
    data = tiny_data(val_fraction=0.2, epoch_kimg=0.016)
    keep = KeepCheckpoints(monitor="val/missing")
    settings: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": str(tmp_path)}
    train(gan, 32, [keep], data, stages=STAGES, **settings)
    assert gan.images_seen == 32
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_unknown_monitored_score_raises_before_the_first_batch(tmp_path: Path) -> None:
    keep = KeepCheckpoints(monitor="val/fid")
    data = tiny_data(val_fraction=0.2, epoch_kimg=0.016)
    settings: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": str(tmp_path)}
    message = "checkpoint.monitor val/fid is not among the scores of validation: val/mean_colour"
    gan = tiny_gan(metrics=[MeanColour()])
    with pytest.raises(UserError, match=message):
        train(gan, 32, [keep], data, stages=STAGES, **settings)
    assert gan.images_seen == 0


class OwnScores(TextToImageGAN):
    """Logs its scores itself, but not the monitored one."""

    def validation_step(self, batch: CaptionedBatch, batch_idx: int) -> None:
        self.log("val/own", 1.0)


def test_error_about_the_monitored_score_does_not_lose_what_was_trained(tmp_path: Path) -> None:
    keep = KeepCheckpoints(monitor="val/fid")
    data = tiny_data(val_fraction=0.2, epoch_kimg=0.016)
    settings: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": str(tmp_path)}
    gan = tiny_gan()
    gan.__class__ = OwnScores
    with pytest.raises(
        UserError, match=r"checkpoint.monitor val/fid is not among the scores of validation: val/own"
    ):
        train(gan, 32, [keep], data, stages=STAGES, **settings)
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


class Means(Extractor):
    """Mean colour as a network's features."""

    name = "means"
    dim = 3

    def load(self) -> None:
        """Nothing is needed."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))


def test_frechet_distance_of_the_next_run_is_equal_from_cached_statistics(tmp_path: Path) -> None:
    """Statistics of the real images are computed in the first run and read in the next."""
    values = []
    for _ in range(2):
        logged = Remember()
        metric = FrechetDistance(Means(), kernel_images=10)
        data = tiny_data(count=40, val_fraction=0.4, epoch_kimg=0.016)
        train(tiny_gan(metrics=[metric]), 32, data=data, stages=STAGES, logger=logged)
        values.append([logged.column(f"val/{name}") for name in metric.scores])
        assert len(list((tmp_path / "cache" / "real").iterdir())) == 1
    assert values[0] == values[1]
    assert all(math.isfinite(v) for column in values[0] for v in column.values())
    assert [list(column) for column in values[0]] == [[16, 32]] * 2


@pytest.mark.parametrize(
    ("pictures", "stddev", "warning"),
    [
        (1, 0, None),
        (1, 4, None),
        (4, 4, None),
        (4, 2, None),
        (
            4,
            0,
            "data.pictures_per_caption 4 has little effect: set minibatch_stddev of the discriminator to 4",
        ),
        (2, 4, "minibatch_stddev 4 of the discriminator should divide data.pictures_per_caption 2"),
    ],
)
def test_groups_of_the_data_and_of_the_discriminator_must_agree(
    caplog: pytest.LogCaptureFixture, pictures: int, stddev: int, warning: str | None
) -> None:
    gan = tiny_gan(discriminator={"minibatch_stddev": stddev})
    with caplog.at_level(logging.WARNING, "imagen_pl"):
        train(gan, 8, data=tiny_data(pictures_per_caption=pictures), stages=STAGES)
    found = [record.message for record in caplog.records if "minibatch_stddev" in record.message]
    assert bool(found) == (warning is not None)
    assert warning is None or found[0].startswith(warning)


@pytest.mark.parametrize("pictures", [1, 4])
def test_loss_that_compares_the_pictures_of_a_caption_needs_several(
    caplog: pytest.LogCaptureFixture, pictures: int
) -> None:
    gan = tiny_gan(losses=[EnergyMatching(TimmBackbone(size=16, maps=[0]))])
    with caplog.at_level(logging.WARNING, "imagen_pl"):
        train(gan, 8, data=tiny_data(pictures_per_caption=pictures), stages=STAGES)
    assert caplog.text.count("EnergyMatching has little effect") == (pictures == 1)
