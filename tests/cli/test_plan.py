"""`imagen-pl plan` on data of each kind; what it writes is trained for a few batches by `imagen-pl fit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagen_pl.cli.main import main
from imagen_pl.cli.plan import default_name
from imagen_pl.planning import speed
from imagen_pl.planning.planner import Plan, Speed
from tests.helpers.planning import loss_terms, machine, write_set, write_shards

SLOW, FAST = 26.0, 5e5  # images a second of the quickstart's networks


def _few(path: Path) -> Path:
    return write_set(path, 20, 64, 64)


def _many_a_caption(path: Path) -> Path:
    return write_set(path, 40, 32, 32, images_a_caption=10)


def _tiny(path: Path) -> Path:
    return write_set(path, 20, 12, 12)


def _photos(path: Path) -> Path:
    return write_set(path, 20, 96, 64, captions=5)


def _stream(path: Path) -> Path:
    return write_shards(path, shards=3, images=8, side=32)


def _one_shard(path: Path) -> Path:
    return write_shards(path, shards=1, images=12, side=32)


def shortened(config: dict[str, Any]) -> dict[str, Any]:
    """Narrow networks, and two batches of 4 in each stage."""
    share = 1 / len(config["growth"]["stages"])
    stages = [
        {**stage, "share": share, "fade_share": share if "fade_share" in stage else 0.0, "batch_size": 4}
        for stage in config["growth"]["stages"]
    ]
    thin = {
        name: {"init_args": {"channels": dict.fromkeys(config["model"][name]["init_args"]["channels"], 8)}}
        for name in ("generator", "discriminator")
    }
    return {
        "growth": {"stages": stages},
        "model": {**thin, "metrics": []},
        "checkpoint": {"monitor": None},
        "data": {"num_workers": 0, "epoch_kimg": 0.008 * len(stages), "min_size": 1},
        "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true", "max_steps": 4 * len(stages)},
    }


@pytest.mark.parametrize(
    ("write", "images_per_second", "resolution", "paired"),
    [
        (_few, SLOW, 32, True),
        (_few, FAST, 64, False),
        (_many_a_caption, SLOW, 32, False),
        (_tiny, SLOW, 8, True),
        (_photos, FAST, 64, False),
        (_stream, SLOW, 32, True),
        (_one_shard, SLOW, 32, True),
    ],
)
def test_each_kind_of_data_gets_a_plan_that_trains(
    write: Any,
    images_per_second: float,
    resolution: int,
    paired: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "measure", machine(images_per_second))
    write(tmp_path / "my_set")

    # 20 images in a second of a slow machine: so few passes that paired losses fit
    assert (
        main(["plan", "my_set", "--hours", "0.005" if images_per_second == SLOW else "24", "--gpus", "0"])
        == 0
    )

    output = capsys.readouterr().out
    assert output.endswith("Wrote configs/my_set.yaml. Train: imagen-pl fit --config configs/my_set.yaml\n")
    assert "Expect: " in output
    assert "Warning: " in output  # all of them are few
    config = yaml.safe_load((tmp_path / "configs/my_set.yaml").read_text())
    assert config["growth"]["stages"][-1]["resolution"] == resolution
    names = [loss["class_path"].rsplit(".", 1)[-1] for loss in loss_terms(config)]
    assert ("PixelMatching" in names) == paired
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(shortened(config)))
    assert main(["fit", "--config", "configs/my_set.yaml", "--config", "short.yaml"]) == 0
    seen = 8 * len(config["growth"]["stages"])
    out = capsys.readouterr().out
    assert f"Trained on {seen} images." in out
    assert "It ended at" not in out


def test_measured_speed_is_that_of_real_training_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured by fit's own loop, with penalties in one step of two; nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "_SECONDS", 0.01)
    found: list[Speed] = []

    def measure(plan: Plan) -> Speed:
        found.append(_real(plan))
        return found[-1]

    _real = speed.measure
    monkeypatch.setattr(speed, "measure", measure)
    write_set(tmp_path / "my_set", 8, 16, 16)

    assert main(["plan", "my_set", "--hours", "0.001", "--gpus", "0"]) == 0

    assert found[0].images_per_second > 0
    assert found[0].memory_gb
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs", "my_set"]


def test_a_step_s_time_is_a_mean_over_steps_with_and_without_penalties() -> None:
    timer = speed.StepTimer(seconds=1.0)
    timer._steps = [(True, 50.0), (False, 40.0), (True, 3.0), (False, 1.0), (True, 3.0), (False, 1.0)]

    assert timer.seconds_a_step(every=4) == pytest.approx(1.5)  # (3 + 1 + 1 + 1) / 4, without the first two


def test_existing_files_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("kept")

    assert main(["plan", "emoji", "--hours", "1", "--out", "mine.yaml"]) == 2

    assert (
        capsys.readouterr().err
        == "error: mine.yaml already exists: give another --name or --out, or remove it\n"
    )
    assert Path("mine.yaml").read_text() == "kept"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--hours", "1"], "nowhere does not exist"),
        (["emoji"], "--hours"),
        (["emoji", "--hours", "0"], "must be more than 0"),
        (["emoji", "--hours", "1", "--gpus", "-1"], "must be 0 or more"),
        (["emoji", "--hours", "1", "--resolution", "48"], "48"),
        (["emoji", "--hours", "1", "--name", "a/b"], "must be a plain name"),
    ],
)
def test_bad_input_gives_one_line_error(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(["plan", *words]) == 2

    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="paths with /")
@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("emoji", "emoji"),
        ("data/my photos/", "my_photos"),
        ("hf:user/flowers", "flowers"),
        ("shards/{000..099}.tar", "shards"),
        ("a/b.parquet", "b"),
    ],
)
def test_a_plan_is_named_after_its_data(source: str, name: str) -> None:
    assert default_name(source) == name
