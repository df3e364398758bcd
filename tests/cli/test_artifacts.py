"""Checkpoints and the data's version as W&B keeps them, read back from what a run wrote offline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen_pl.callbacks.run_record import git_state
from imagen_pl.cli.main import main
from tests.helpers.runs import REPOSITORY, Tiny
from tests.helpers.wandb_file import fit, records

TRACKED = ["--config", str(REPOSITORY / "configs/tracking/wandb.yaml")]


def written(run: Path) -> list[list[Any]]:
    """The records of each of a run's sessions, the first session first."""
    files = run.glob("wandb/offline-run-*/*.wandb")
    return [list(records(f)) for f in sorted(files, key=lambda f: f.stat().st_mtime_ns)]


def artifacts(seen: list[Any], kind: str) -> list[Any]:
    found = [r.artifact for r in seen if r.WhichOneof("record_type") == "artifact"]
    return [artifact for artifact in found if artifact.type == kind]


def run_of(seen: list[Any]) -> Any:
    return next(r.run for r in seen if r.WhichOneof("record_type") == "run")


def clocks(seen: list[Any]) -> list[int]:
    found = []
    for record in seen:
        items = record.history.item if record.WhichOneof("record_type") == "history" else []
        row = {i.key or ".".join(i.nested_key): i.value_json for i in items}
        found += [int(row["images_seen"])] if "train/d_loss" in row else []
    return found


def test_best_and_last_checkpoints_are_artifacts_linked_to_their_data(tiny: Tiny) -> None:
    done = fit([*tiny.words, *TRACKED], WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    (seen,) = written(tiny.run)
    run = run_of(seen)

    (data,) = artifacts(seen, "dataset")
    version = json.loads(data.metadata)
    assert data.use_after_commit  # an input of the run, not an output
    assert version["digest"] in data.aliases
    assert (version["source"], version["train_images"] + version["validation_images"]) == ("FolderSource", 12)
    (entry,) = data.manifest.contents  # no images
    assert entry.path == "data.json"
    assert json.loads(Path(entry.local_path).read_text()) == version

    models = artifacts(seen, "model")
    assert {model.name for model in models} == {f"model-tiny-{run.run_id}"}
    by_alias = {alias: model for model in models for alias in model.aliases if alias != "latest"}
    assert sorted(by_alias) == ["best", "last"]
    assert len(models) == len({json.loads(model.metadata)["images_seen"] for model in models})
    git = git_state()
    for alias, model in by_alias.items():
        checkpoint = torch.load(tiny.run / f"checkpoints/{alias}.ckpt", weights_only=True)
        (entry,) = model.manifest.contents
        assert entry.path == "model.ckpt"
        made = json.loads(model.metadata)
        assert made["images_seen"] == checkpoint["images_seen"]
        assert made["resolution"] == checkpoint["growth_resolution"] == 8
        assert made["scores"].keys() == {"val/mean_colour"}
        assert made["scores_at_images_seen"] == checkpoint["images_seen"]
        assert made["data_digest"] == version["digest"]
        assert made["git_commit"] == (git["commit"] if git else None)
    keeper = torch.load(tiny.run / "checkpoints/best.ckpt", weights_only=True)["callbacks"]
    best = next(state for name, state in keeper.items() if name.startswith("KeepCheckpoints"))
    score = json.loads(by_alias["best"].metadata)["scores"]["val/mean_colour"]
    assert score == pytest.approx(float(best["best_model_score"]))

    # The file from `wandb artifact get` is enough to sample from.
    (entry,) = by_alias["best"].manifest.contents
    Path("downloaded").mkdir()
    Path(entry.local_path).rename("downloaded/model.ckpt")
    assert main(["sample", "downloaded/model.ckpt", "a red heart", "--out", "heart.png"]) == 0
    assert Path("heart.png").is_file()


def test_resumed_run_keeps_its_id(tiny: Tiny) -> None:
    words = [*tiny.words, *TRACKED]
    for more in (["--trainer.max_steps", "44"], ["--ckpt_path", "last"]):
        done = fit([*words, *more], WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr
    first, second = written(tiny.run)

    ids = {run_of(seen).run_id for seen in (first, second)}
    assert ids == {json.loads((tiny.run / "run.json").read_text())["id"]}
    assert run_of(second).resume  # `wandb sync` adds to what is there
    assert clocks(first)[-1] < clocks(second)[0]  # no batch is logged twice
    assert clocks(second)[-1] == 160
    names = {a.name for seen in (first, second) for a in artifacts(seen, "model")}
    assert len(names) == 1  # later versions of the same artifact
    digests = {artifacts(seen, "dataset")[0].digest for seen in (first, second)}
    assert len(digests) == 1  # the same version of the data

    # The documented command finds both; only uploading needs a network.
    command = [
        sys.executable,
        "-m",
        "wandb",
        "sync",
        "--dry-run",
        *map(str, tiny.run.glob("wandb/offline-run-*")),
    ]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert listed.returncode == 0, listed.stderr
    assert "Would sync 2 run(s)" in listed.stdout + listed.stderr


def test_new_best_is_uploaded_during_training(tiny: Tiny) -> None:
    often = {"class_path": "WandbArtifacts", "init_args": {"best_every_minutes": 0}}
    words = ["--trainer.callbacks", json.dumps([often]), "--trainer.max_steps", "88"]
    done = fit([*tiny.words, *TRACKED, *words, "--checkpoint.mode", "max"], WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    (seen,) = written(tiny.run)
    order = [(r.artifact.type, list(r.artifact.aliases)) if r.artifact.name else None for r in seen]
    last_row = max(i for i, r in enumerate(seen) if r.WhichOneof("record_type") == "history")
    early = [a for a in order[:last_row] if a and a[0] == "model"]
    assert early
    assert all("best" in aliases and "last" not in aliases for _, aliases in early)


def test_sweep_trial_has_its_own_folder_and_id(tiny: Tiny) -> None:
    words = [*tiny.words, *TRACKED, "--trainer.max_steps", "8", "--trainer.callbacks=null"]
    for trial in ("t1", "t2"):
        done = fit(words, WANDB_MODE="offline", WANDB_SWEEP_ID="s1", WANDB_RUN_ID=trial)
        assert done.returncode == 0, done.stderr
        (seen,) = written(Path(f"runs/tiny-{trial}"))
        assert (run_of(seen).run_id, run_of(seen).sweep_id) == (trial, "s1")
        assert not artifacts(seen, "model")
        assert json.loads(Path(f"runs/tiny-{trial}/run.json").read_text())["id"] == trial


def test_training_continues_if_uploads_fail(tiny: Tiny) -> None:
    Path("full").write_text("no folder")
    done = fit([*tiny.words, *TRACKED], WANDB_MODE="offline", WANDB_DATA_DIR=str(Path("full/data").resolve()))
    assert done.returncode == 0, done.stderr
    assert "Trained on 160 images." in done.stdout
    assert "W&B did not accept an artifact; training is not affected" in done.stderr
    assert (tiny.run / "checkpoints/last.ckpt").is_file()


def test_without_wandb_the_callback_does_nothing(tiny: Tiny) -> None:
    assert main(["fit", *tiny.words, *TRACKED, "--trainer.logger=null", "--trainer.max_steps", "8"]) == 0
    assert not list(tiny.run.glob("wandb*"))
