"""The benchmark of speed: its arithmetic, its worker processes, and a whole comparison of tiny networks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml

from benchmarks import machine, speed, speed_race
from benchmarks.speed_worker import BlockTimer
from imagen_pl.cli.main import main
from imagen_pl.errors import UserError
from tests.helpers.runs import tiny_config

REPOSITORY = Path(__file__).parents[2]

# In place of a training: 10 images a step, and a second a step, or half of it.
STUB = """\
import sys
from multiprocessing.connection import Connection

connection, step_s = Connection(int(sys.argv[1])), float(sys.argv[2])
connection.send({"package": "stub"})
while steps := connection.recv():
    if steps > 100:
        sys.exit("out of memory")
    connection.send((10 * steps, step_s * steps))
"""


@pytest.fixture
def stub(tmp_path: Path) -> Callable[[float], speed_race.Worker]:
    script = tmp_path / "stub.py"
    script.write_text(STUB)

    def start(step_s: float) -> speed_race.Worker:
        return speed_race.Worker("stub", tmp_path, [str(step_s)], tmp_path / "log", script=script)

    return start


def test_table_has_medians_ratio_and_their_ranges() -> None:
    found = speed_race.Comparison(here=[30.0, 40.0, 20.0], other=[20.0, 20.0, 20.0])

    assert found.ratios == [1.5, 2.0, 1.0]
    assert found.table("abc", "def").splitlines()[2:] == [
        "| abc | 30.0 | 20.0 to 40.0 |",
        "| def | 20.0 | 20.0 to 20.0 |",
        "| ratio | 1.50 | 1.00 to 2.00 |",
    ]


def test_workers_take_turns_and_the_warm_up_does_not_count(
    stub: Callable[[float], speed_race.Worker], capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[tuple[str, int]] = []

    class Recorded:
        def __init__(self, name: str, worker: speed_race.Worker) -> None:
            self.name, self.worker = name, worker

        def images_per_second(self, steps: int) -> float:
            order.append((self.name, steps))
            return self.worker.images_per_second(steps)

    workers = [stub(0.5), stub(1.0)]
    assert workers[0].ready() == workers[1].ready() == {"package": "stub"}
    here, other = (cast(speed_race.Worker, Recorded(*pair)) for pair in zip("ab", workers, strict=True))
    found = speed_race.alternate(here, other, blocks=2, steps=4, warm_up=3)
    for worker in workers:
        worker.close()

    assert order == [("a", 3), ("b", 3), ("a", 4), ("b", 4), ("a", 4), ("b", 4)]
    assert (found.here, found.other) == ([20.0, 20.0], [10.0, 10.0])
    assert "block 2: 20.0 and 10.0 images/s" in capsys.readouterr().out
    assert [worker.process.returncode for worker in workers] == [0, 0]


def test_a_failed_worker_is_reported_with_what_it_printed(
    stub: Callable[[float], speed_race.Worker],
) -> None:
    worker = stub(1.0)
    worker.ready()

    with pytest.raises(SystemExit, match=r"(?s)stub ended with 1:.*out of memory"):
        worker.images_per_second(101)
    worker.close()


class Module:
    """What the timer reads of a LightningModule."""

    images_seen = 5
    device = torch.device("cpu")


def test_block_timer_trains_the_steps_it_is_sent_and_waits() -> None:
    ours, theirs = Pipe()
    timer = BlockTimer(os.dup(theirs.fileno()))
    trainer: Any = SimpleNamespace(precision="32-true", should_stop=False)
    module: Any = Module()

    def train() -> None:
        timer.on_train_start(trainer, module)
        while not trainer.should_stop:
            module.images_seen += 32
            timer.on_train_batch_end(trainer, module, None, None, 0)

    training = threading.Thread(target=train, daemon=True)
    training.start()
    ready = ours.recv()
    assert (ready["package"], ready["device"], ready["precision"]) == (__file__, "cpu", "32-true")
    for steps, images in ((3, 101), (1, 133)):
        ours.send(steps)
        seen, seconds = ours.recv()
        assert (seen, module.images_seen) == (32 * steps, images)
        assert seconds > 0
    assert not ours.poll(0.05)
    assert module.images_seen == 133  # it waits
    ours.send(0)
    training.join(timeout=10)
    assert not training.is_alive()


def test_a_recipe_of_another_commit_is_found_by_path_or_name(tmp_path: Path) -> None:
    (tmp_path / "configs/debug").mkdir(parents=True)
    for name in ("configs/debug/tiny.yaml", "configs/quickstart.yaml"):
        (tmp_path / name).touch()

    assert speed_race.config_in(tmp_path, "configs/debug/tiny.yaml") == "configs/debug/tiny.yaml"
    assert speed_race.config_in(tmp_path, speed.QUICKSTART) == "configs/quickstart.yaml"
    with pytest.raises(UserError, match=r"no configs/coco\.yaml: .*--against-config"):
        speed_race.config_in(tmp_path, "configs/coco.yaml")


def test_distances_are_means_and_ranges_over_seeds() -> None:
    curves = {0: {400: 110.0, 800: 90.0}, 1: {400: 130.0, 800: 100.0}, 7: {400: 120.0}}

    assert speed.distance_table(curves, "val/fd").splitlines() == [
        "| images | val/fd | seeds | from | to |",
        "|---|---|---|---|---|",
        "| 400 | 120.0 | 3 | 110.0 | 130.0 |",
        "| 800 | 95.0 | 2 | 90.0 | 100.0 |",
    ]


def test_images_trains_each_seed_and_writes_the_curves(
    tmp_path: Path,
    photos: Path,
    bert: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The trainings run in this process, by the real command."""

    def run(command: list[str], **_: Any) -> None:
        assert command[1:3] == ["-m", "imagen_pl.cli.main"]
        assert main(command[3:]) == 0

    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_config(photos, bert), sort_keys=False))
    words = ["images", "--config", str(config), "--images", "64", "--every", "32", "--seeds", "0", "5"]
    words += ["--metric", "val/mean_colour", "--runs_dir", str(tmp_path / "runs"), "--name", "few"]
    monkeypatch.setattr(sys, "argv", ["speed.py", *words])
    monkeypatch.setattr(speed, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(speed, "git_state", lambda: {"commit": "abc"})

    speed.main()

    result = json.loads((tmp_path / "runs/few.json").read_text())
    assert {seed: list(curve) for seed, curve in result["distances"].items()} == {
        seed: ["32", "64"] for seed in ("0", "5")
    }
    assert result["seeds"] == [0, 5]
    assert result["distances"]["0"] != result["distances"]["5"]
    assert result["command"].startswith("python -m benchmarks.speed images --config")
    assert (result["git"], "instructions" in result["machine"]) == ({"commit": "abc"}, True)
    assert "| 64 | " in capsys.readouterr().out


def test_masks_of_instructions_are_in_the_machine_s_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in machine.MASKS:
        monkeypatch.delenv(name, raising=False)
    assert "none of them masked" in machine.describe_machine()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert re.search(
        r"avx2 (yes|no), avx512_f (yes|no), .*; ONEDNN_MAX_CPU_ISA=AVX2; ", machine.describe_machine()
    )


def test_settings_are_words_of_fit() -> None:
    assert speed_race.settings(["trainer.max_steps=4", "a=b=c"]) == ["--trainer.max_steps=4", "--a=b=c"]
    with pytest.raises(UserError, match="--set x must be KEY=VALUE"):
        speed_race.settings(["x"])


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="needs the git repository")
def test_race_against_a_commit(tmp_path: Path, photos: Path, bert: Path) -> None:
    config, out = tmp_path / "tiny.yaml", tmp_path / "results" / "race.json"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    config.write_text(yaml.safe_dump(tiny_config(photos, bert), sort_keys=False))
    words = ["race", "--against", "HEAD", "--config", str(config), "--out", str(out), "--threads", "1"]
    words += ["--blocks", "2", "--steps", "2", "--warm-up", "1", "--set", "data.seed=3", "--against-set"]

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", *words],
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert not list(temporary.iterdir())
    listed = ["git", "-C", str(REPOSITORY), "worktree", "list"]
    assert str(tmp_path) not in subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    assert "cpu, 32-true, 1 threads; 2 blocks of 2 steps each, in turn" in done.stdout
    result = json.loads(out.read_text())
    assert {name: len(values) for name, values in result["images_per_second"].items()} == {
        "here": 2,
        "other": 2,
    }
    assert re.search(rf"^\| {result['other']}( with changes)?, tiny \| ", done.stdout, re.MULTILINE)
    assert len(result["ratios"]) == 2
    assert result["command"].startswith("python -m benchmarks.speed race --against HEAD")


def test_overlay_and_settings_reach_the_run() -> None:
    """As docs/tuning.md gives them."""
    from imagen_pl.cli.training_cli import TrainingCLI

    words = ["images", "--config", speed.QUICKSTART, "benchmarks/grids/usual_steps.yaml"]
    words += ["--images", "12096", "--every", "4032"]
    words += ["--set", "model.generator_optimizer.init_args.every=2"]
    found = speed.fit_words(speed.parser().parse_args(words), "usual", seed=2)
    cli = TrainingCLI(found[1:], run=False)  # without "fit": nothing is run

    gan, settings = cli.model, cli.config.model
    assert not gan.share_passes
    assert [penalty.every for penalty in gan.penalties] == [8, 8]
    assert {penalty.weight_at(32) for penalty in gan.penalties} == {1.0}  # the quickstart's
    assert settings.generator_optimizer.init_args.every == 2
    assert settings.generator_optimizer.init_args.lr == 2e-3  # the quickstart's
