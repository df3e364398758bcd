"""A run that takes a second: tiny networks on a handful of pictures."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagen_pl.cli import main


@dataclass
class Tiny:
    """words: arguments of `fit`; run: the folder that it makes, from the working folder."""

    words: list[str]
    run: Path


def tiny_config(photos: Path) -> dict[str, Any]:
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001, "betas": [0.0, 0.99]}}
    return {
        "growth": {
            "stages": [
                {"resolution": 4, "kimg": 0.064, "batch_size": 4},
                {"resolution": 8, "kimg": 1.0, "fade_kimg": 0.064, "batch_size": 8},
            ]
        },
        "samples": {"captions": ["a red heart", "a cat, fluent style", "a red heart"], "every_kimg": 0.1},
        "checkpoint": {"monitor": "val/mean"},
        "model": {
            "generator": {
                "class_path": "imagen_pl.generators.style.StyleGenerator",
                "init_args": {"channels": {4: 8, 8: 8}, "text_dim": 16, "latent_dim": 8, "style_dim": 8},
            },
            "discriminator": {
                "class_path": "imagen_pl.discriminators.multiscale.MultiscaleDiscriminator",
                "init_args": {"channels": {4: 8, 8: 8}, "text_dim": 16, "final_dim": 8},
            },
            "text_encoder": {"class_path": "imagen_pl.text.encoder.FrozenTextEncoder"},
            "adversarial": {"class_path": "imagen_pl.losses.adversarial.Relativistic"},
            "generator_optimizer": optimizer,
            "discriminator_optimizer": optimizer,
            "metrics": [{"class_path": "imagen_pl.metrics.base.Mean"}],
        },
        "data": {
            "source": {"class_path": "imagen_pl.data.datamodule.Folder", "init_args": {"path": str(photos)}}
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 56,  # two optimizers: 16 batches of 4, then 12 of 8
            "val_check_interval": 14,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
        },
    }


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A configuration in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_config(tmp_path), sort_keys=False))
    return Tiny(["--config", "tiny.yaml"], Path("runs/tiny"))


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny run was trained."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_config(folder), sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", "tiny.yaml"]) == 0
    return folder


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A copy of the trained run, for a test to go on with."""
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Tiny(["--config", "tiny.yaml"], Path("runs/tiny"))
