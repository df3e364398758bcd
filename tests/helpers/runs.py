"""A run that takes a second: tiny networks on a handful of pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from imagen_pl.cli.main import main
from tests.helpers.image_files import write_photos
from tests.helpers.transformers_models import save_bert

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def _subprocesses_find_the_tests() -> Iterator[None]:
    """Configurations name the tests' own scores, and commands run from other folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder, 16 wide."""
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen small PNG files, each with its caption in a .txt."""
    return write_photos(tmp_path_factory.mktemp("photos"), count=12, side=16)


@dataclass
class Tiny:
    """words: arguments of `fit`; run: the folder that it makes, from the working folder."""

    words: list[str]
    run: Path


def tiny_config(photos: Path, encoder: Path) -> dict[str, Any]:
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001, "betas": [0.0, 0.99]}}
    guessing = {
        "backbone": {"class_path": "tests.helpers.fakes.TinyBackbone"},
        **{"captions": 12, "text_dim": 16, "seen_dim": 4, "thumbnail_dim": 4},
    }
    return {
        "growth": {
            "stages": [
                {"resolution": 4, "kimg": 0.064, "batch_size": 4},
                {"resolution": 8, "kimg": 1.0, "fade_kimg": 0.064, "batch_size": 8},
            ]
        },
        "samples": {"captions": ["a red heart", "a cat, fluent style", "a red heart"], "every_kimg": 0.1},
        "checkpoint": {"monitor": "val/mean_colour"},
        "model": {
            "generator": {
                "class_path": "imagen_pl.models.generators.style.StyleGenerator",
                "init_args": {
                    **{"channels": {4: 8, 8: 8}, "text_dim": 16, "latent_dim": 8, "style_dim": 8},
                    "prior": {"class_path": "imagen_pl.models.image_prior.ImagePrior", "init_args": guessing},
                },
            },
            "discriminator": {
                "class_path": "imagen_pl.models.discriminators.multiscale.MultiscaleDiscriminator",
                "init_args": {"channels": {4: 8, 8: 8}, "text_dim": 16, "final_dim": 8},
            },
            "text_encoder": {
                "class_path": "imagen_pl.models.text.encoder.FrozenTextEncoder",
                "init_args": {"name": str(encoder)},
            },
            "adversarial": {"class_path": "imagen_pl.losses.adversarial.Relativistic"},
            "generator_optimizer": optimizer,
            "discriminator_optimizer": optimizer,
            "metrics": [{"class_path": "tests.helpers.fakes.MeanColour"}],
        },
        "data": {
            "source": {"class_path": "FolderSource", "init_args": {"path": str(photos)}},
            "num_workers": 0,
            "epoch_kimg": 0.08,  # validation at 80 and 160 images
            "val_fraction": 0.25,
        },
        "trainer": {
            "accelerator": "cpu",
            "precision": "32-true",  # the same numbers on every machine
            "max_steps": 56,  # two optimizers: 16 batches of 4, then 12 of 8
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
        },
    }


@pytest.fixture
def tiny(tmp_path: Path, photos: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A configuration in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_config(photos, bert), sort_keys=False))
    return Tiny(["--config", "tiny.yaml"], Path("runs/tiny"))


@pytest.fixture(scope="session")
def trained_once(photos: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny run was trained."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_config(photos, bert), sort_keys=False))
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


def read_state(path: Path) -> dict[str, object]:
    """What a checkpoint holds."""
    return torch.load(path, map_location="cpu", weights_only=True)
