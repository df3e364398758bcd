"""The hyperparameter search: its list of trials, its record and its score."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import search
from benchmarks.ablation import ICON_COLUMNS

FD, MRR = "val/fd_efficientnet_lite1", "val/mrr_efficientnet_lite1"
SPACE = f"""
minutes: 1
base: [a.yaml]
minimize: {FD}
maximize: {MRR}
vary:
  noise: {{"0": [], "0.3": [--noise=0.3]}}
  words: {{all: [], few: [--config, few.yaml]}}
first: [{{}}, {{noise: "0.3"}}]
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(SPACE)
    return file


def _fit(commands: list[list[str]]) -> Any:
    """In place of the training: writes the curve that a run would."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        folder = Path(command[command.index("--runs_dir") + 1]) / command[command.index("--name") + 1]
        folder.mkdir(parents=True)
        lines = [
            f"images_seen,train/images_per_second,{FD},{MRR}",
            "10,5,,",
            "20,10,150.0,0.1",
            "20,,140.0,0.2",
        ]
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
        return subprocess.CompletedProcess(command, 0)

    return run


def kinds_of_terms(words: list[str]) -> list[str]:
    from imagen_pl.cli.training_cli import TrainingCLI

    return [term.class_path for term in TrainingCLI(words, run=False).config.model.losses]


def test_study_files_exist_and_every_choice_parses() -> None:
    from imagen_pl.cli.training_cli import TrainingCLI

    space = search.read_space(search.STUDY)

    assert space.first[0] == {}
    base = [word for file in space.base for word in ("--config", str(search.REPOSITORY / file))]
    base += ["--name", "a_test"]  # the baseline may be in the list
    quickstart = [
        "--config",
        str(search.REPOSITORY / "configs/experiment/quickstart.yaml"),
        "--name",
        "a_test",
    ]
    kinds = [kinds_of_terms(words) for words in (base, quickstart)]
    assert kinds[0] == kinds[1]
    for name, choices in space.vary.items():
        for choice in choices:
            cli = TrainingCLI([*base, *space.words({name: choice})], run=False)
            assert {space.minimize, space.maximize} <= {
                f"val/{s}" for m in cli.model.validation.metrics for s in m.scores
            }


def test_every_choice_of_the_icons_study_parses() -> None:
    from imagen_pl.cli.training_cli import TrainingCLI

    space = search.read_space(search.STUDY.with_name("icons64.yaml"))
    assert {space.minimize, space.maximize} <= set(ICON_COLUMNS)
    assert space.icons is not None
    assert (search.REPOSITORY / space.icons).is_dir()
    base = [word for file in space.base for word in ("--config", str(search.REPOSITORY / file))]
    plain = TrainingCLI([*base, "--name", "a_test"], run=False).config
    for name, choices in space.vary.items():
        for choice, words in choices.items():
            found = TrainingCLI([*base, "--name", "a_test", *words], run=False).config
            assert (found.as_dict() == plain.as_dict()) == (choices[choice] == []), (name, choice)


def test_icons_are_judged_by_their_benchmark(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = SPACE.replace(FD, "FD").replace(MRR, "new pairs") + "icons: some_icons\n"
    study_file.write_text(chosen)
    scored: list[Any] = []

    def score(*asked: Any) -> list[dict[str, Any]]:
        scored.append(asked)
        found = {
            "frechet": 99.0,
            "diversity": {"diversity": 0.8, "latent_share": 0.5},
            "named": {"train": [0.3, 0.5], "pairs": [0.2, 0.4], "subjects": [0.1, 0.2]},
            "pair_accuracy": {"number, learnt": [0.6, 80]},
            "set": [0.2, 300],
            "kind": [0.5, 300],
        }
        return [{"score": found}]

    monkeypatch.setattr(subprocess, "run", _fit([]))
    monkeypatch.setattr(search, "git_state", lambda: {"commit": "abc"})
    monkeypatch.setattr(search, "score", score)
    runs = tmp_path / "runs"
    monkeypatch.setattr("sys.argv", ["search.py", "--study", str(study_file), "--runs_dir", str(runs)])
    search.main()

    study, space = search.open_study(study_file), search.read_space(study_file)
    assert study.trials[0].values == [99.0, 40.0]
    wanted = ("benchmarks.icons", "efficientnet_lite1", [runs / "trial-0"], ["--icons", "some_icons"])
    assert scored == [wanted]
    row = "| 0 | nothing | 20 | 99.0 | 0.80 | 0.50 | 50% | 40% | 20% | 60.0% | 20% | 50% |"
    assert row in search.table(study, space)


def test_trials_come_from_the_list_and_are_recorded(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", _fit(commands))
    monkeypatch.setattr(search, "git_state", lambda: {"commit": "abc"})

    for number in range(2):  # two calls, as after a break
        arguments = ["search.py", "--study", str(study_file), "--runs_dir", str(tmp_path / "runs")]
        monkeypatch.setattr("sys.argv", arguments)
        search.main()
        space = search.read_space(study_file)
        assert search.open_study(study_file).trials[number].values == [140.0, 0.2]

    trials = search.open_study(study_file).trials
    assert [t.params for t in trials] == [{"noise": "0", "words": "all"}, {"noise": "0.3", "words": "all"}]
    assert "--noise=0.3" in commands[1]
    assert trials[1].user_attrs["images_seen"] == 20
    assert trials[1].user_attrs["git"] == {"commit": "abc"}
    assert "| 1 | noise: 0.3 | 20 | 140.0 | 0.200 |" in search.table(search.open_study(study_file), space)


def test_interrupted_trial_is_marked_failed_and_repeated(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = search.read_space(study_file)
    study = search.open_study(study_file)
    search.make_ready(study, space)
    study.ask()
    monkeypatch.setattr("sys.argv", ["search.py", "--study", str(study_file), "--table"])
    search.main()
    assert study.trials[0].state.name == "RUNNING"  # printing the table changes nothing

    search.make_ready(study, space)

    assert study.trials[0].state.name == "FAIL"
    assert [t.system_attrs["fixed_params"] for t in study.trials[1:]] == [
        {"noise": "0.3", "words": "all"},
        {"noise": "0", "words": "all"},
    ]


def test_parallel_trials_share_cores_and_fail_independently(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    fit = _fit([])

    def run(command: list[str], env: dict[str, str], **_: Any) -> Any:
        threads.append(env["OMP_NUM_THREADS"])
        if "--noise=0.3" in command:
            raise subprocess.CalledProcessError(1, command)
        return fit(command)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(search, "git_state", lambda: {"commit": "abc"})
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    words = ["search.py", "--study", str(study_file), "--runs_dir", str(tmp_path / "runs"), "--trials", "2"]
    monkeypatch.setattr("sys.argv", [*words, "--jobs", "2"])
    search.main()

    assert threads == ["3", "3"]
    states = {t.params["noise"]: t.state.name for t in search.open_study(study_file).trials}
    assert states == {"0": "COMPLETE", "0.3": "FAIL"}

    monkeypatch.setattr("sys.argv", [*words, "--jobs", "0"])
    with pytest.raises(SystemExit):
        search.main()


def test_unknown_choice_raises(study_file: Path) -> None:
    study_file.write_text(SPACE.replace('first: [{}, {noise: "0.3"}]', 'first: [{noise: "7"}]'))

    with pytest.raises(SystemExit, match="noise: 7 is no choice"):
        search.read_space(study_file)
