"""LatentShare: what it logs, and when it warns."""

from __future__ import annotations

from zlib import crc32

import pytest
import torch
from torch import Tensor

from imagen_pl.callbacks import latent_share
from imagen_pl.callbacks.latent_share import LatentShare
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.schedules import Stage
from tests.helpers.training import Remember, Speckled, tiny_gan, train

pytestmark = pytest.mark.usefixtures("one_thread")
EIGHT = (Stage(8, kimg=10.0, batch_size=8),)


def data(captions: int) -> CaptionedImages:
    source = Speckled(24, side=8, captions=lambda i: [f"number {i % captions}"])
    return CaptionedImages(source, num_workers=0, epoch_kimg=1, val_fraction=0)


class ByLatent(TextToImageGAN):
    """Its samples are a mixture of noise of the caption and of the latent."""

    of_latent = 1.0

    def sample(self, captions: list[str], seed: int, truncation: float = 1.0) -> Tensor:
        def noise(i: int) -> Tensor:
            return torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(i))

        words = torch.stack([noise(crc32(caption.encode()) % 1000) for caption in captions])
        return words + self.of_latent * torch.stack([noise(5000 + i) for i in range(len(captions))])


def run(
    monkeypatch: pytest.MonkeyPatch, of_latent: float, captions: int = 4
) -> tuple[list[float], list[str]]:
    """The logged shares and the warnings."""
    monkeypatch.setattr(latent_share, "_TRUSTED", 32)
    gan, logger = tiny_gan(), Remember()
    said: list[str] = []
    gan.__class__ = ByLatent
    gan.of_latent = of_latent  # type: ignore[assignment]
    callback = LatentShare(every_kimg=0.016, say=said.append)
    train(gan, 96, [callback], data(captions), logger=logger, log_every_n_steps=1, stages=EIGHT)
    return list(logger.column("train/latent_share").values()), said


@pytest.mark.parametrize(("of_latent", "share"), [(1.0, 0.5), (3.0, 0.9), (0.1, 0.0099)])
def test_share_of_a_known_mixture_is_logged(
    monkeypatch: pytest.MonkeyPatch, of_latent: float, share: float
) -> None:
    logged, _ = run(monkeypatch, of_latent)

    assert len(logged) >= 8
    assert logged[-1] == pytest.approx(share, rel=0.15)


def test_one_warning_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    _, said = run(monkeypatch, 0.1)

    (line,) = said
    assert "images of one caption look alike" in line
    assert "pictures_per_caption" in line


def test_varied_images_give_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run(monkeypatch, 1.0)[1]


def test_no_warning_where_each_caption_has_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    logged, said = run(monkeypatch, 0.1, captions=24)

    assert logged
    assert not said


def test_measuring_does_not_change_training() -> None:
    runs = []
    for callbacks in ([], [LatentShare(every_kimg=0.016)]):
        gan = tiny_gan()
        train(gan, 64, callbacks, data(4), stages=EIGHT)
        runs.append(torch.cat([p.detach().flatten() for p in gan.parameters()]))
    assert torch.equal(*runs)
