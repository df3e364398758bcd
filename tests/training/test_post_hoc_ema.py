"""Averages of any length from snapshots of two: against their definition, in training, and in `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from imagen_pl.callbacks.power_averages import PowerAverages
from imagen_pl.cli.main import main
from imagen_pl.errors import UserError
from imagen_pl.inference.pipeline import load
from imagen_pl.schedules import Stage
from imagen_pl.storage.run_folder import RunFolder
from imagen_pl.training.post_hoc_ema import (
    FOLDER,
    Snapshot,
    average,
    exponent,
    factors,
    product,
    snapshots_of,
    write_snapshot,
)
from tests.helpers.runs import Tiny
from tests.helpers.training import tiny_data, tiny_gan, tiny_trainer, train

pytestmark = pytest.mark.usefixtures("one_thread")
EIGHT = (Stage(8, kimg=10.0, batch_size=8),)
POINTS = (np.arange(100_000) + 0.5) / 100_000


def weights_over_time(snapshot: Snapshot, end: int) -> np.ndarray:
    """By definition: tau^g up to the snapshot, with integral 1 over a run of `end` images."""
    times, power = POINTS * end, exponent(snapshot.length)
    density = np.where(times <= snapshot.images, times**power, 0.0)
    return density / density.sum() * len(times) / end


@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.25])
def test_length_is_the_standard_deviation_of_the_weights(length: float) -> None:
    weights = weights_over_time(Snapshot(1000, length), 1000)
    share = weights / weights.sum()
    mean = (share * POINTS).sum()
    assert np.sqrt((share * (POINTS - mean) ** 2).sum()) == pytest.approx(length, rel=1e-3)


@pytest.mark.parametrize("length", [0.0, -1.0, 1e-4, 0.289, 1.0])
def test_length_out_of_range_is_reported(length: float) -> None:
    with pytest.raises(UserError, match=r"must be from 0.001 to 0.289"):
        exponent(length)


@pytest.mark.parametrize(("first", "second"), [((400, 0.05), (1000, 0.1)), ((700, 0.1), (700, 0.2))])
def test_product_is_the_integral_of_both_weights(first: tuple[int, float], second: tuple[int, float]) -> None:
    one, other = Snapshot(*first), Snapshot(*second)
    by_sum = (weights_over_time(one, 1000) * weights_over_time(other, 1000)).mean() * 1000
    assert product(one, other) == pytest.approx(by_sum, rel=1e-2)
    assert product(other, one) == product(one, other)


@pytest.mark.parametrize("length", [0.03, 0.05, 0.08, 0.15, 0.25])
def test_sum_of_snapshots_has_the_wanted_weights(length: float) -> None:
    """Snapshots at forty times give any of these lengths to within a few per cent."""
    kept = [Snapshot(images, each) for images in range(250, 10_001, 250) for each in (0.05, 0.1)]
    wanted = Snapshot(10_000, length)

    found, missed = factors(kept, wanted)

    aim = weights_over_time(wanted, 10_000)
    made = sum(f * weights_over_time(s, 10_000) for f, s in zip(found, kept, strict=True))
    assert found.sum() == pytest.approx(1)
    assert missed < 0.02
    assert ((made - aim) ** 2).sum() / (aim**2).sum() == pytest.approx(missed, abs=0.01)


class Weights(Callback):
    """Records a weight of the generator after each batch."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.seen.append(next(pl_module.generator.parameters()).detach().double().clone())


def test_average_of_a_training_is_that_of_its_weights(tmp_path: Path) -> None:
    """Made afterwards from snapshots, and directly from the weights of every step."""
    recorded, gan = Weights(), tiny_gan()
    averages = PowerAverages(every_kimg=0.04)
    train(gan, 800, [recorded, averages], tiny_data(), stages=EIGHT, default_root_dir=tmp_path)
    name = next(iter(dict(gan.generator.named_parameters())))

    assert len(recorded.seen) == 100
    for length in (0.05, 0.1, 0.17):
        power, direct = exponent(length), recorded.seen[0]
        for step, weight in enumerate(recorded.seen, start=1):
            direct = direct + (1 - (1 - 1 / step) ** (power + 1)) * (weight - direct)
        made = average(tmp_path, length)[0][name].double()
        change = (recorded.seen[-1] - recorded.seen[0]).norm()
        assert (made - direct).norm() < 0.02 * change, length
        assert (direct - recorded.seen[-1]).norm() > 0.04 * change


def test_resumed_training_writes_the_same_snapshots(tmp_path: Path) -> None:
    def run(folder: Path, images: int, **resumed: Any) -> None:
        train(
            tiny_gan(), images, [PowerAverages(every_kimg=0.08)], tiny_data(), stages=EIGHT,
            default_root_dir=folder, **resumed,
        )  # fmt: skip

    def contents(folder: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in sorted((folder / FOLDER).iterdir())}

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, 320)
    gan, data = tiny_gan(), tiny_data()
    trainer = tiny_trainer(160, [PowerAverages(every_kimg=0.08)], stages=EIGHT, default_root_dir=parts)
    trainer.fit(gan, data)
    trainer.save_checkpoint(parts / "at160.ckpt")
    write_snapshot(parts / FOLDER, Snapshot(900, 0.05), {"stale": torch.zeros(1)})
    again = tiny_trainer(320, [PowerAverages(every_kimg=0.08)], stages=EIGHT, default_root_dir=parts)
    again.fit(tiny_gan(), tiny_data(), ckpt_path=str(parts / "at160.ckpt"), weights_only=True)

    assert list(contents(whole)) == [
        f"{images:010d}-{s}.safetensors" for images in (80, 160, 240, 320) for s in ("0.05", "0.1")
    ]
    assert contents(parts) == contents(whole)


def test_too_few_snapshots_and_none_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no snapshots to average: train with --trainer.callbacks\+="):
        average(tmp_path, 0.1)
    for length in (0.05, 0.1):
        write_snapshot(tmp_path / FOLDER, Snapshot(1000, length), {"w": torch.ones(2)})
    assert snapshots_of(tmp_path / FOLDER) == [Snapshot(1000, 0.05), Snapshot(1000, 0.1)]
    assert average(tmp_path, 0.1)[0]["w"].tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(
        UserError, match=r"the 2 snapshots of .* give no average of length 0.01: their sum misses"
    ):
        average(tmp_path, 0.01)
    with pytest.raises(
        UserError, match=r"PowerAverages.lengths \[0.1, 0.1\] must be two or more different ones"
    ):
        PowerAverages(lengths=[0.1, 0.1])


def test_callback_that_joins_a_run_later_is_refused(tmp_path: Path) -> None:
    trainer = train(tiny_gan(), 16, stages=EIGHT, default_root_dir=tmp_path)
    trainer.save_checkpoint(tmp_path / "without.ckpt")
    with pytest.raises(
        UserError, match=r"PowerAverages.lengths 0.05, 0.1: the checkpoint has no such averages"
    ):
        train(
            tiny_gan(), 32, [PowerAverages()], ckpt_path=tmp_path / "without.ckpt", stages=EIGHT,
            default_root_dir=tmp_path,
        )  # fmt: skip


def test_dry_run_keeps_the_snapshots(tmp_path: Path) -> None:
    write_snapshot(tmp_path / FOLDER, Snapshot(1000, 0.05), {"w": torch.ones(2)})
    (tmp_path / FOLDER / "other.safetensors").touch()
    gan = tiny_gan()
    train(gan, 16, [PowerAverages()], stages=EIGHT, default_root_dir=tmp_path, fast_dev_run=2)
    assert snapshots_of(tmp_path / FOLDER) == [Snapshot(1000, 0.05)]


def test_export_takes_the_average(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the newest checkpoint, whatever the best one is; the rest of it stays."""
    newest = RunFolder(trained.run).newest_checkpoint()
    assert newest is not None
    model = load(newest, device="cpu")
    images = model.description["images_seen"]
    plain = {name: p.detach().clone() for name, p in model.generator.named_parameters()}
    for length, factor in ((0.05, 1.0), (0.1, 2.0)):
        weights = {name: factor * p for name, p in plain.items()}
        write_snapshot(trained.run / FOLDER, Snapshot(images, length), weights)

    words = ["export", str(trained.run), "--to", "safetensors", "--out"]
    assert main([*words, "averaged", "--ema_length", "0.1"]) == 0
    exported = load("averaged", device="cpu")
    assert (exported.description["ema_length"], exported.description["images_seen"]) == (0.1, images)
    averaged = dict(exported.generator.named_parameters())
    for name, before in plain.items():
        torch.testing.assert_close(averaged[name].detach(), 2 * before, rtol=2e-3, atol=1e-4)


def test_export_of_a_wrong_average_is_refused(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = RunFolder(trained.run).newest_checkpoint()
    assert checkpoint is not None
    model = load(checkpoint, device="cpu")
    parameters = dict(model.generator.named_parameters())

    def error(path: Path) -> str:
        words = ["export", str(path), "--to", "safetensors", "--out", "other", "--ema_length", "0.1"]
        assert main(words) == 2
        return capsys.readouterr().err

    assert f"--ema_length averages over a run: give its folder instead of {checkpoint}" in error(checkpoint)
    for length in (0.05, 0.1):
        write_snapshot(trained.run / FOLDER, Snapshot(8, length), parameters)
    assert "the last snapshot of" in error(trained.run)
    for length in (0.05, 0.1):
        write_snapshot(trained.run / FOLDER, Snapshot(9999, length), {"w": torch.ones(2)})
    for length in (0.05, 0.1):
        Snapshot(8, length).file(trained.run / FOLDER).unlink()
    assert "are of another generator: give the run that they belong to" in error(trained.run)
