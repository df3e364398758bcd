"""Preparation before the first batch: cached for all runs, one progress bar, and little in a dry run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.ship_prior import ship
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.image_caption_pairs import ImageCaptionPairs
from imagen_pl.data.sources.base import Row
from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.interpolated_captions import InterpolatedCaptionLoss
from imagen_pl.models.image_prior import ImagePrior
from imagen_pl.training import kernel_ridge_fit, preparation
from imagen_pl.training.kernel_ridge_fit import KernelRidgeFit, kernel_ridge_modules
from tests.helpers.fakes import TinyBackbone, TinyText
from tests.helpers.training import (
    SaveAt,
    Speckled,
    assert_same,
    tiny_data,
    tiny_gan,
    tiny_trainer,
    train,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMAGEN_PL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fits(cache: Path) -> list[Path]:
    return sorted((cache / "kernel_ridge").iterdir()) if (cache / "kernel_ridge").exists() else []


def gan(
    backbone: TinyBackbone | None = None,
    both: bool = True,
    text_encoder: TinyText | None = None,
    captions: int = 24,
    **settings: Any,
) -> TextToImageGAN:
    """With a prior, and if `both` also a loss with its own regression."""
    backbone = backbone or TinyBackbone()
    prior = ImagePrior(backbone, captions, text_dim=16, seen_dim=4, thumbnail_dim=3, **settings)
    loss = InterpolatedCaptionLoss(backbone, captions, text_dim=16, seen_dim=5, from_resolution=8)
    return tiny_gan({"prior": prior}, losses=[loss] if both else [], text_encoder=text_encoder or TinyText())


def fitted(trained: TextToImageGAN) -> list[dict[str, torch.Tensor]]:
    return [weights_of(module) for module in kernel_ridge_modules(trained)]


def forbid_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_ridge_fit, "fit_together", lambda *_: pytest.fail("it was fitted"))


# ------------------------------------------------------------------ the cache of fits


def test_next_run_loads_the_same_fit_to_the_bit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = gan()
    train(first, 8)
    assert len(fits(cache)) == 2
    forbid_fits(monkeypatch)
    second = gan()
    train(second, 8)
    assert fitted(first)[0]["weights"].any()
    assert_same(fitted(second), fitted(first))
    assert_same(weights_of(second), weights_of(first))


def test_modules_that_read_the_same_images_read_them_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    batches = ImageCaptionPairs.batches

    def counted(self: ImageCaptionPairs, *how: Any, **more: Any) -> Iterator[Any]:
        for batch in batches(self, *how, **more):
            read.append(len(batch))
            yield batch

    monkeypatch.setattr(ImageCaptionPairs, "batches", counted)
    both = gan()
    train(both, 8)
    assert sum(read) == 24
    monkeypatch.setenv("IMAGEN_PL_CACHE", str(cache.with_name("another")))
    alone = gan(both=False)
    train(alone, 8)
    assert sum(read) == 48
    assert_same(weights_of(kernel_ridge_modules(alone)[0]), weights_of(kernel_ridge_modules(both)[0]))


class OtherWeights(TinyBackbone):
    def _read(self) -> torch.nn.Module:
        network = super()._read()
        with torch.no_grad():
            network.get_parameter("weight").mul_(1.001)
        return network


class OtherImage(Speckled):
    """One image in the middle differs; rows and captions are the same."""

    def image(self, row: Row) -> bytes:
        return super().image(Row(row.name, row.captions, 100) if row.place == 13 else row)


class OtherCaption(Speckled):
    def load(self, problems: Any) -> dict[str, list[Row]]:
        splits = super().load(problems)
        splits["train"][13] = Row("13", ("another",), 13)
        return splits


class Other(TinyText):
    def __init__(self) -> None:
        super().__init__()
        self.fingerprint = "other"


def changed(name: str) -> tuple[TextToImageGAN, CaptionedImages]:
    data = tiny_data()
    if name in ("image", "caption"):
        data.source = (OtherImage if name == "image" else OtherCaption)(24, side=32)
    if name == "background":
        data = tiny_data(background="black")
    settings: dict[str, Any] = {
        "ridge": {"ridge": 3.0},
        "sharpness": {"sharpness": 5.0},
        "captions": {"captions": 12},
        "encoder": {"text_encoder": Other()},
        "weights": {"backbone": OtherWeights()},
    }
    return gan(both=False, **settings.get(name, {})), data


@pytest.mark.parametrize(
    "name",
    ["image", "caption", "background", "ridge", "sharpness", "captions", "encoder", "weights"],
)
def test_every_input_of_a_fit_changes_its_cache_file(name: str, cache: Path) -> None:
    train(gan(both=False), 8)
    module, data = changed(name)
    train(module, 8, data=data)
    assert len(fits(cache)) == 2


def test_damaged_file_gives_one_warning_and_is_fitted_again(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = gan(both=False)
    train(first, 8)
    (path,) = fits(cache)
    whole = path.read_bytes()
    for damaged in (whole[:1000], b"", b"not a fit" * 100):
        path.write_bytes(damaged)
        caplog.clear()
        again = gan(both=False)
        with caplog.at_level(logging.WARNING, "imagen_pl"):
            train(again, 8)
        (output,) = [r.message for r in caplog.records if r.name == kernel_ridge_fit.__name__]
        assert f"{path} is damaged" in output
        assert "\n" not in output
        assert_same(fitted(again), fitted(first))
        assert path.read_bytes() == whole


def test_shipped_fit_serves_any_device_and_replaces_a_damaged_one(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = gan(both=False)
    data = tiny_data()
    train(first, 8, data=data)
    (path,) = fits(cache)
    ship(path, tmp_path / "shipped")
    monkeypatch.setattr(kernel_ridge_fit, "_SHIPPED", tmp_path / "shipped")
    path.write_bytes(b"not a fit")

    for device in ("cpu", "meta"):  # meta stands in for a GPU: another name in the cache
        again = gan(both=False)
        modules = kernel_ridge_modules(again.generator)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "imagen_pl"):
            fit = KernelRidgeFit(modules, again.text_encoder, data, torch.device(device))
        assert fit.image_count == 0
        assert len(caplog.records) == (device == "cpu")  # the damaged file
        torch.testing.assert_close(modules[0].weights, fitted(first)[0]["weights"], atol=1e-2, rtol=1e-2)
    assert not path.exists()


def test_unwritable_cache_gives_one_warning(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir()
    (cache / "kernel_ridge").write_text("in the way")
    trained = gan(both=False)
    with caplog.at_level(logging.WARNING, "imagen_pl"):
        train(trained, 8)
    assert trained.images_seen == 8
    assert [r.message for r in caplog.records if "ImagePrior is not cached for the next run" in r.message]


def test_a_resumed_run_looks_captions_up_and_fits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(gan(), 8, [SaveAt({8: tmp_path / "middle.ckpt"})])
    monkeypatch.setattr(preparation, "KernelRidgeFit", lambda *_: pytest.fail("it was fitted"))
    resumed = gan(text_encoder=(encoder := TinyText()))
    train(resumed, 16, ckpt_path=tmp_path / "middle.ckpt")
    assert encoder.encoded == []
    assert resumed.run_state.text_lookup is not None


def test_another_data_module_is_refused() -> None:
    data = tiny_data()
    data.setup("fit")
    with pytest.raises(UserError, match="ImagePrior is fitted to the images of a CaptionedImages"):
        tiny_trainer(8).fit(gan(), data.train_dataloader())


# ------------------------------------------------------------------ the bar


class Bars:
    """Replaces `progress_bar`: records the arguments and the count of each bar."""

    def __init__(self) -> None:
        self.bars: list[SimpleNamespace] = []

    @contextmanager
    def __call__(self, description: str, total: int, unit: str) -> Iterator[SimpleNamespace]:
        bar = SimpleNamespace(description=description, total=total, count=0)
        bar.update = lambda count: setattr(bar, "count", bar.count + count)
        self.bars.append(bar)
        yield bar


def test_one_bar_counts_captions_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = Bars()
    monkeypatch.setattr(preparation, "progress_bar", bars)
    data = tiny_data(count=30)
    for _ in range(2):
        train(gan(both=False), 8, data=data)
    first, second = bars.bars
    assert (first.description, first.total, first.count) == ("preparing: captions and images", 54, 54)
    assert (second.total, second.count) == (0, 0)  # nothing is shown, as after less than two seconds


# ------------------------------------------------------------------ fast_dev_run


def test_fast_dev_run_reads_little_and_writes_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_ridge_fit, "_DRY_RUN_CAPTIONS", 5)
    encoder = TinyText()
    trained = gan(text_encoder=encoder)
    train(trained, 8, data=tiny_data(count=24), fast_dev_run=True)
    assert trained.images_seen == 8
    assert len(encoder.encoded) == 5 + 8  # those of the fit, and of the batch
    assert [int(state["known"].any(1).sum()) for state in fitted(trained)] == [5, 5, 5]
    assert not cache.exists()


def test_fast_dev_run_uses_a_cached_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    first = gan()
    train(first, 8)
    forbid_fits(monkeypatch)
    dry = gan()
    train(dry, 8, fast_dev_run=True)
    assert_same(fitted(dry), fitted(first))
