"""`imagen-pl data shards`, from the command to a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imagen_pl.cli import main
from tests.cli.conftest import Tiny

COMMAND = Path(sys.executable).parent / "imagen-pl"

# ---------------------------------------------------------------------- shards


def test_a_model_is_trained_on_what_was_written(
    tiny: Tiny, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "shards", str(photos), "--out", "shards", "--size_images", "4"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    sizes = sum(file.stat().st_size for file in Path("shards").iterdir())
    assert told.out.splitlines() == [
        f"train             12 images, {sizes / 1e6:.1f} MB: shards/train-{{000000..000002}}.tar",
        "splits      no validation: data.val_fraction of the train shards will be held out",
        "Train: imagen-pl fit --config configs/experiment/folder64.yaml "
        "--config configs/data/webdataset.yaml --data.source.path shards",
    ]
    assert main(["data", "inspect", "shards"]) == 0
    assert "images     12: train 12" in capsys.readouterr().out
    words = ["--data.source", "WebDatasetSource", "--data.source.path", "shards"]
    assert main(["fit", *tiny.words, *words, "--trainer.max_steps", "24"]) == 0
    assert torch.load(tiny.run / "checkpoints/last.ckpt", weights_only=True)["images_seen"] == 48


def test_the_installed_command(photos: Path, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(COMMAND), "data", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )

    done = run("shards", str(photos), "--out", "shards", "--shrink", "8")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir(tmp_path / "shards")) == ["train-000000.tar", "train-000001.tar"]
    again = run("shards", str(photos), "--out", "shards")
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "error: --out shards is not empty: name a new folder\n"
