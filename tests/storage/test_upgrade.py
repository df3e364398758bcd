"""Files of commit af54387, before every module and several settings were renamed, can still be read.

tests/files/af54387 holds a tiny run of that commit: its configuration, checkpoint (compressed) and release,
and four pictures that it drew.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from imagen_pl import load
from imagen_pl.cli.main import main
from imagen_pl.inference.captioning import load_captioner
from imagen_pl.storage.checkpoint_io import read_checkpoint
from imagen_pl.storage.upgrade import CLASSES, MODULES, upgrade_class_path, upgrade_settings

FILES = Path(__file__).parents[1] / "files" / "af54387"
PROMPTS = ["a red heart", "a blue cat, noto style"]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """A working folder with the old run in runs/tiny; its paths are relative to the folder."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    checkpoints = tmp_path / "runs/tiny/checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "last.ckpt").write_bytes(gzip.decompress((FILES / "last.ckpt.gz").read_bytes()))
    monkeypatch.chdir(tmp_path)
    return Path("runs/tiny")


@pytest.mark.parametrize("model", ["runs/tiny", "release"])
def test_an_old_checkpoint_and_release_draw_the_same_pictures(model: str, old: Path) -> None:
    drawn = load(model, device="cpu").sample(PROMPTS, num_images=2, refine=0)

    expected = [Image.open(FILES / f"pictures/{row:06d}-{k}.png") for row in range(2) for k in range(2)]
    for picture, before in zip(drawn, expected, strict=True):
        # Another CPU may round otherwise, by one level.
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(before.convert("RGB"))).max() <= 1


def test_the_captioner_of_an_old_checkpoint_writes_the_same_captions(old: Path) -> None:
    captioner = load_captioner(old, device="cpu")

    assert captioner.caption(Path("photos/0.png")) == "abluetttttt"


def test_an_old_run_resumes_with_its_old_configuration(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--name", "tiny", "--ckpt_path", "last", "--trainer.max_steps", "72"]

    assert main(["fit", "--config", "config.yaml", *words]) == 0

    assert (
        "imagen_pl.callbacks.turns.NewestLearns is now imagen_pl.callbacks.block_policies"
        in capsys.readouterr().err
    )
    assert read_checkpoint(old / "checkpoints/last.ckpt")["images_seen"] == 96
    with (old / "metrics.csv").open() as file:
        last = next(row for row in csv.DictReader(file) if row["images_seen"] == "96")
    # What commit af54387 got when it resumed the same checkpoint.
    for name, before in (("d_loss", 0.59952587), ("g_loss", 0.87479842), ("g_grad_norm", 2.1630290)):
        assert float(last[f"train/{name}"]) == pytest.approx(before, rel=1e-2)
    written = yaml.safe_load((old / "config.yaml").read_text())
    assert written == upgrade_settings(written)


def test_every_new_class_path_can_be_imported() -> None:
    modules = {old: importlib.import_module(f"imagen_pl.{new}") for old, new in MODULES.items()}

    for name in CLASSES.values():
        assert any(hasattr(module, name) for module in modules.values()), name


def test_current_names_are_not_changed() -> None:
    for path in ("torch.optim.Adam", "mine.generators.style.StyleGenerator", "imagen_pl.schedules.Linear"):
        assert upgrade_class_path(path) == path
    assert upgrade_settings({"generator": ["red, imagen", 1, None]}) == {
        "generator": ["red, imagen", 1, None]
    }


def test_a_short_class_name_is_renamed_too() -> None:
    assert upgrade_settings({"class_path": "VisualPrior"}) == {"class_path": "ImagePrior"}


def test_a_renamed_setting_keeps_its_value() -> None:
    assert upgrade_settings({"model": {"share_fakes": True}}) == {"model": {"share_passes": True}}


def test_tensors_of_a_new_checkpoint_are_not_copied(tmp_path: Path) -> None:
    weight = torch.ones(2)
    torch.save({"state_dict": {"a": weight}, "images_seen": 1}, tmp_path / "new.ckpt")

    assert list(read_checkpoint(tmp_path / "new.ckpt")) == ["state_dict", "images_seen"]
