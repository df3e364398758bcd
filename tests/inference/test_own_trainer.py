"""Drawing from a TextToImageGAN that one's own Lightning Trainer has trained, without the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imagen_pl import load
from imagen_pl.errors import UserError
from imagen_pl.inference.pipeline import TextToImage
from tests.helpers.training import tiny_gan, train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_checkpoint_of_a_plain_trainer_draws_the_module_s_images(tmp_path: Path) -> None:
    gan = tiny_gan()
    trainer = train(gan, 24)
    checkpoint = tmp_path / "own.ckpt"
    trainer.save_checkpoint(checkpoint)
    expected = TextToImage.from_module(gan).sample("number 3", seed=5, num_images=2)

    model = load(checkpoint, device="cpu", module=tiny_gan())

    assert model.resolution == gan.growth.resolution
    for mine, theirs in zip(model.sample("number 3", seed=5, num_images=2), expected, strict=True):
        assert np.array_equal(np.asarray(mine), np.asarray(theirs))


def test_missing_module_error_says_how_to_load(tmp_path: Path) -> None:
    trainer = train(tiny_gan(), 8)
    checkpoint = tmp_path / "own.ckpt"
    trainer.save_checkpoint(checkpoint)

    with pytest.raises(UserError, match="module="):
        load(checkpoint, device="cpu")


def test_model_from_a_module_cannot_be_saved_as_a_release(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="class paths, which a release needs"):
        TextToImage.from_module(tiny_gan()).save(tmp_path / "release")
