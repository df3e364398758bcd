"""benchmarks/faults.py: its counts, and the comparison of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import faults
from imagen_pl.storage.run_folder import RunFolder


def kill(**changed: object) -> dict[str, object]:
    found: dict[str, object] = {
        **{"ended": False, "while_saving": False, "part_files_at_kill": 0, "part_files_after_start": 0},
        **{"damaged_checkpoints": 0, "images_saved": 64, "images_lost": 16},
    }
    return {**found, **changed}


def test_table_counts_kills_damage_and_lost_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that ended before it was killed does not count as a kill."""
    kills = [
        kill(part_files_at_kill=1, images_lost=48),
        kill(damaged_checkpoints=1, part_files_after_start=2),
        kill(ended=True, images_lost=0),
    ]
    out = tmp_path / "faults.json"
    out.write_text(json.dumps({"kills": kills, "equal": False, "part_files_at_end": 3}))
    assert faults.main(["--table", "--out", str(out)]) == 0
    values = [line.split(" | ")[1].rstrip(" |") for line in capsys.readouterr().out.splitlines()[2:]]
    assert values == ["2", "1", "1", "2", "3", "32 (48)", "no"]


def test_equal_compares_weights_and_clock_bitwise() -> None:
    one = {"images_seen": 8, "state_dict": {"w": torch.ones(2)}}
    assert faults.equal(one, {"images_seen": 8, "state_dict": {"w": torch.ones(2)}})
    assert not faults.equal(one, {"images_seen": 8, "state_dict": {"w": torch.ones(2) + 1e-7}})
    assert not faults.equal(one, {"images_seen": 16, "state_dict": {"w": torch.ones(2)}})
    assert not faults.equal(one, {"images_seen": 8, "state_dict": {}})


def test_logged_images_and_part_files_of_a_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert faults.logged_images(run) == 0
    run.metrics.write_text("images_seen,train/d_loss\n16,0.5\n32,0.5\n")
    assert faults.logged_images(run) == 32
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/.last.ckpt.1.part").touch()
    assert len(faults.part_files(run)) == 1
