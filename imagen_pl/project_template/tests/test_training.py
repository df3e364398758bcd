"""The configuration trains, with the package's own source and loss."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from imagen_pl.cli.main import main

CONFIG = Path(__file__).parents[1] / "configs/discs.yaml"


def test_two_batches_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the run's folder goes here
    # Two optimizer steps a batch.
    short = ["--trainer.max_steps", "4", "--trainer.log_every_n_steps", "1", "--data.num_workers", "0"]

    assert main(["fit", "--config", str(CONFIG), "--data.source.sizes", "8", *short]) == 0

    with Path("runs/discs/metrics.csv").open() as file:
        assert any(row.get("train/g_warmth") for row in csv.DictReader(file))
    assert Path("runs/discs/checkpoints/last.ckpt").is_file()
