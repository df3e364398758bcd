"""The quickstart's prior is shipped with the package, so that a first run need not look at the images."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from benchmarks.ship_prior import SHIPPED, ship
from imagen_pl.cli.main import main
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.sources.emoji import EmojiSource
from imagen_pl.models.image_prior import ImagePrior
from imagen_pl.models.pretrained.backbones import TimmBackbone
from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.training import kernel_ridge_fit
from tests.helpers.runs import REPOSITORY

QUICKSTART = REPOSITORY / "configs/experiment/quickstart.yaml"


def test_the_quickstart_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEN_PL_CACHE", str(tmp_path))
    monkeypatch.setattr(
        kernel_ridge_fit,
        "fit_together",
        lambda *_: pytest.fail("the shipped fit is of other data or settings: run benchmarks/ship_prior.py"),
    )

    code = main(
        [
            *("fit", "--config", str(QUICKSTART), "--runs_dir", str(tmp_path)),
            *("--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu"),
        ]
    )

    assert not code
    assert not (tmp_path / "kernel_ridge").exists()


def test_it_predicts_the_features_of_the_shipped_images() -> None:
    (file,) = SHIPPED.glob("*.safetensors")
    prior = ImagePrior(TimmBackbone("efficientnet_lite0", size=128, maps=[3, 4]), captions=4608)
    prior.load_state_dict(safetensors.torch.load_file(file))
    data = CaptionedImages(EmojiSource(), batch_size=32, resolution=32)
    data.setup("fit")
    batch = next(data.pairs.batches(4608, largest=128))
    pooled = FrozenTextEncoder().encode(batch.captions, "cpu").pooled

    torch.testing.assert_close(
        prior.known[: len(batch)], torch.nn.functional.normalize(pooled, dim=1), atol=1e-3, rtol=0
    )
    images = batch.images.float() / 127.5 - 1
    with torch.no_grad():
        right = prior.cosine_distance(images, pooled).mean()
        wrong = prior.cosine_distance(images, pooled.roll(1, 0)).mean()
    assert right < 0.7 * wrong


def test_a_new_fit_replaces_the_one_before(tmp_path: Path) -> None:
    fits, shipped = tmp_path / "cache", tmp_path / "shipped"
    fits.mkdir()
    for name in ("before", "after"):
        safetensors.torch.save_file({"weights": torch.full((2, 3), 0.3)}, fits / f"{name}.safetensors")
        ship(fits / f"{name}.safetensors", shipped)

    (file,) = shipped.iterdir()
    assert file.name == "after.safetensors"
    assert safetensors.torch.load_file(file)["weights"].dtype == torch.float16
