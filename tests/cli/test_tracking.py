"""What a run writes for W&B, TensorBoard and the record, read back."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient
from PIL import Image

from imagen_pl.callbacks.run_record import git_state
from imagen_pl.cli.main import main
from tests.helpers.runs import Tiny
from tests.helpers.wandb_file import fit, records

NEEDED = {
    "train/d_loss",
    "train/g_loss",
    "train/d_margin",
    "train/d_grad_norm",
    "train/g_grad_norm",
    "train/images_per_second",
    "growth/stage",
    "growth/resolution",
    "growth/fade",
}


def add_logger(name: str, **arguments: object) -> list[str]:
    logger = {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": arguments}
    Path("tracking.yaml").write_text(yaml.safe_dump({"trainer": {"logger": [logger]}}))
    return ["--config", "tracking.yaml"]


def test_wandb_offline_gets_numbers_over_images_seen_and_captioned_pictures(tiny: Tiny) -> None:
    done = fit([*tiny.words, *add_logger("WandbLogger", project="test", offline=True)])
    assert done.returncode == 0, done.stderr
    (file,) = tiny.run.glob("wandb/offline-run-*/*.wandb")
    seen = list(records(file))

    axes = [r.metric for r in seen if r.WhichOneof("record_type") == "metric" and r.metric.glob_name == "*"]
    assert axes[-1].step_metric == "images_seen"  # the later definition counts

    rows = []
    for record in seen:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
    assert all("images_seen" in row for row in rows)
    clocks = [row["images_seen"] for row in rows if "train/d_loss" in row]
    assert clocks == [*range(4, 68, 4), *range(72, 168, 8)]
    assert set().union(*rows) >= NEEDED | {"val/mean_colour"}

    grids = [row for row in rows if "samples.captions" in row]
    assert [grid["images_seen"] for grid in grids] == [104, 160]
    assert grids[0]["samples.captions"] == ["a red heart", "a cat, fluent style", "a red heart"]
    folder = file.parent / "files"
    assert all((folder / name).is_file() for grid in grids for name in grid["samples.filenames"])

    settings: dict[str, object] = {}
    for record in seen:
        if record.WhichOneof("record_type") == "config":
            settings |= {u.key: json.loads(u.value_json) for u in record.config.update}
    assert settings["growth"]["stages"][1]["resolution"] == 8  # type: ignore[index]
    assert "torch" in settings["versions"]  # type: ignore[operator]
    run = next(r.run for r in seen if r.WhichOneof("record_type") == "run")
    assert (run.display_name, run.project) == ("tiny", "test")
    assert run.run_id == json.loads((tiny.run / "run.json").read_text())["id"]
    # The run's own folder keeps the configuration, not W&B's.
    assert yaml.safe_load((tiny.run / "config.yaml").read_text())["name"] == "tiny"


def test_wandb_without_a_key_gives_one_line_error(tiny: Tiny, tmp_path: Path) -> None:
    words = [*tiny.words, *add_logger("WandbLogger", project="test")]
    done = fit(words, HOME=str(tmp_path / "home"), NETRC=str(tmp_path / "netrc"))
    assert done.returncode == 2
    output = done.stderr.splitlines()[-1]
    assert output.startswith("error: W&B: No API key configured.")
    assert "WANDB_MODE=offline" in output


def test_wandb_disabled_needs_nothing(tiny: Tiny) -> None:
    words = ["--trainer.max_steps", "8", *add_logger("WandbLogger", project="test")]
    done = fit([*tiny.words, *words], WANDB_MODE="disabled")
    assert done.returncode == 0, done.stderr
    assert not list(tiny.run.glob("wandb/*run*"))


def test_tensorboard_gets_numbers_and_grids_over_images_seen(tiny: Tiny) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["fit", *tiny.words, *add_logger("TensorBoardLogger", save_dir="elsewhere")]) == 0
    assert not Path("elsewhere").exists()
    events = EventAccumulator(str(tiny.run / "tensorboard"), {"images": 0, "scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) >= NEEDED | {"val/mean_colour"}
    assert [e.step for e in events.Scalars("train/d_loss")] == [*range(4, 68, 4), *range(72, 168, 8)]
    assert [e.step for e in events.Images("samples")] == [104, 160]
    assert [e.step for e in events.Images("samples_by_stage")] == [64, 160]


def test_mlflow_gets_numbers_and_grids_and_a_resumed_run_continues(tiny: Tiny) -> None:
    settings = {"experiment_name": "test", "artifact_location": "files"}
    words = [*tiny.words, *add_logger("MLFlowLogger", tracking_uri="sqlite:///mlflow.db", **settings)]
    assert main(["fit", *words, "--max_images", "96"]) == 0
    assert main(["fit", *words, "--ckpt_path", "last"]) == 0
    client = MlflowClient("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "tiny"
    history = client.get_metric_history(found.info.run_id, "train/d_loss")
    assert sorted(each.step for each in history) == [*range(4, 68, 4), *range(72, 168, 8)]
    tables = [file.name for file in Path("files").rglob("samples_by_stage+step+*.png")]
    assert {name.split("+")[2] for name in tables} >= {"64", "160"}
    grids = [file.name for file in Path("files").rglob("samples+step+*.png")]
    assert {name.split("+")[2] for name in grids} >= {"104", "160"}


def test_samples_are_logged_at_the_end_of_every_stage(tiny: Tiny) -> None:
    """As files and as a table in W&B; two of the grid's captions are equal."""
    done = fit([*tiny.words, *add_logger("WandbLogger", project="test", offline=True)])
    assert done.returncode == 0, done.stderr
    stages = sorted(each for each in (tiny.run / "samples/stages").iterdir() if each.is_dir())
    sizes = [Image.open(stage / "000.png").width for stage in stages]
    assert [stage.name for stage in stages] == [f"{i + 1}-{size}px" for i, size in enumerate(sizes)]
    assert sizes == [4, 8]
    assert [len(list(stage.glob("*.png"))) for stage in stages] == [3, 3]
    sheet = Image.open(tiny.run / "samples/stages/table.png")
    assert sheet.width > 2 * 96
    tables = tiny.run.glob("wandb/offline-run-*/files/media/table/samples_by_stage_*.table.json")
    kept = max((json.loads(table.read_text()) for table in tables), key=lambda table: len(table["columns"]))
    assert kept["columns"] == ["caption", "1: 4 px", "2: 8 px"]
    assert [row[0] for row in kept["data"]] == ["a red heart", "a cat, fluent style", "a red heart"]


def test_csv_logger_writes_into_the_run_folder(tiny: Tiny) -> None:
    words = ["--trainer.max_steps", "8", *add_logger("CSVLogger", save_dir="elsewhere")]
    assert main(["fit", *tiny.words, *words]) == 0
    assert (tiny.run / "csv/metrics.csv").is_file()
    assert (tiny.run / "metrics.csv").is_file()


def test_without_loggers_no_metrics_are_written(tiny: Tiny) -> None:
    assert main(["fit", *tiny.words, "--trainer.max_steps", "8", "--trainer.logger", "false"]) == 0
    assert not (tiny.run / "metrics.csv").exists()


def test_run_record_has_commit_versions_and_every_start(trained: Tiny) -> None:
    words = ["--ckpt_path", "last", "--trainer.max_steps", "60"]
    before = json.loads((trained.run / "run.json").read_text())
    assert main(["fit", *trained.words, *words]) == 0
    record = json.loads((trained.run / "run.json").read_text())
    assert record["id"] == before["id"]
    assert record["starts"][0] == before["starts"][0]
    assert record["starts"][1]["command"] == (
        "imagen-pl fit --config tiny.yaml --ckpt_path last --trainer.max_steps 60"
    )
    assert {"python", "torch", "imagen_pl"} <= record["starts"][1]["versions"].keys()


def test_git_state_is_that_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() is None
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b.c")
    (tmp_path / "a").write_text("1")
    for words in (["init", "-q", "-b", "trunk"], ["add", "a"], ["commit", "-q", "-m", "m"]):
        subprocess.run(["git", *words], check=True)
    state = git_state()
    assert state is not None
    assert (len(state["commit"]), state["branch"], state["changed"]) == (40, "trunk", False)
    (tmp_path / "a").write_text("2")
    assert git_state() == {**state, "changed": True}
