"""Search for a better recipe: trials of equal time on the shipped emoji or icons, recorded by Optuna.

    python -m benchmarks.search                   # the next trial of benchmarks/studies/quickstart.yaml
    python -m benchmarks.search --trials 16 --jobs 2 --study benchmarks/studies/quickstart.yaml
    python -m benchmarks.search --table           # what is known, as Markdown
    python -m benchmarks.search --study benchmarks/studies/icons64.yaml

The study says what may vary and which trials come first; after those, Optuna proposes. A trial is judged by
the validation split alone, its distance and its retrieval: test and composition stay for
benchmarks/quality.py. With `icons` in the study it is judged by the validation of benchmarks/icons.py, which
has new pairs of learnt subjects and sets too. The SQLite file beside the study, .db, holds every trial with
its command, commit, speed and scores; optuna-dashboard opens it. An interrupted trial is marked as failed
there and is tried again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.ablation import ICON_COLUMNS, REPOSITORY, images_per_second, read_metrics, score
from imagen_pl.callbacks.run_record import git_state

if TYPE_CHECKING:
    import optuna

STUDY = REPOSITORY / "benchmarks/studies/quickstart.yaml"


@dataclass(frozen=True)
class Space:
    """What is searched; see the comments in the YAML file."""

    minutes: float
    base: list[str]
    minimize: str
    maximize: str
    vary: dict[str, dict[str, list[str]]]
    first: list[dict[str, str]]
    icons: str | None = None  # the folder of icons that scores the trials
    extractor: str = "efficientnet_lite1"  # of benchmarks/icons.py

    def words(self, chosen: dict[str, str]) -> list[str]:
        """Arguments of `imagen-pl fit` for these choices."""
        return [word for name, choice in chosen.items() for word in self.vary[name][choice]]

    def whole(self, chosen: dict[str, str]) -> dict[str, str]:
        """A choice for everything that varies: the first one where none is given."""
        return {name: chosen.get(name, next(iter(choices))) for name, choices in self.vary.items()}


def read_space(file: Path) -> Space:
    space = Space(**yaml.safe_load(file.read_text(encoding="utf-8")))
    for chosen in space.first:
        for name, choice in chosen.items():
            if choice not in space.vary.get(name, {}):
                raise SystemExit(f"{file}: first: {name}: {choice} is no choice of `vary`")
    return space


def open_study(file: Path) -> optuna.Study:
    """The study as it was left."""
    import optuna

    return optuna.create_study(
        study_name=file.stem,
        storage=f"sqlite:///{file.with_suffix('.db')}",
        directions=["minimize", "maximize"],
        sampler=optuna.samplers.TPESampler(seed=0, multivariate=True, constant_liar=True),
        load_if_exists=True,
    )


def make_ready(study: optuna.Study, space: Space) -> None:
    """Fail what was broken off, and let those of the first trials wait that have not ended well."""
    import optuna

    for broken in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(broken.number, state=optuna.trial.TrialState.FAIL)
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.WAITING)
    known = [
        t.params or t.system_attrs.get("fixed_params")
        for t in study.get_trials(deepcopy=False, states=states)
    ]
    for chosen in map(space.whole, space.first):
        if chosen not in known:
            study.enqueue_trial(chosen)
            known.append(chosen)


def run_trial(trial: optuna.Trial, space: Space, runs_dir: Path, threads: int) -> tuple[float, float]:
    """Train, and give the last validation's two scores."""
    chosen = {name: trial.suggest_categorical(name, list(choices)) for name, choices in space.vary.items()}
    seconds = round(60 * space.minutes)
    words = ["fit", *(word for file in space.base for word in ("--config", file)), *space.words(chosen)]
    words += ["--name", f"trial-{trial.number}", "--runs_dir", str(runs_dir), "--existing", "move"]
    words += ["--trainer.max_time", f"00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"]
    trial.set_user_attr("command", "imagen-pl " + " ".join(words))
    trial.set_user_attr("git", git_state())
    trial.set_user_attr("threads", threads)
    # Threads that spin while they wait would take time from the trial beside.
    share = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "imagen_pl.cli.main", *words]
    subprocess.run(command, cwd=REPOSITORY, check=True, env=share)
    rows = read_metrics(runs_dir / f"trial-{trial.number}" / "metrics.csv")
    scores = {name: value for row in rows for name, value in row.items() if name.startswith("val/")}
    seen, speed = int(rows[-1]["images_seen"]), images_per_second(rows)
    if space.icons is not None:
        folder = runs_dir / f"trial-{trial.number}"
        (found,) = score("benchmarks.icons", space.extractor, [folder], ["--icons", space.icons])
        result = {**found, "images_seen": seen, "images_per_second": speed}
        scores |= {name: pick(result) for name, (pick, _) in ICON_COLUMNS.items()}
    trial.set_user_attr("scores", scores)
    trial.set_user_attr("images_seen", seen)
    trial.set_user_attr("images_per_second", speed)
    return scores[space.minimize], scores[space.maximize]


def search(study: optuna.Study, space: Space, runs_dir: Path, trials: int, jobs: int) -> None:
    """Run the next trials, so many side by side; one that breaks off leaves the others alone."""
    import optuna

    # Not study.optimize: two of its threads can take the same waiting trial out of a SQLite file.
    one_at_a_time = threading.Lock()

    def run_next(_: int) -> None:
        with one_at_a_time:
            trial = study.ask()
        try:
            values = run_trial(trial, space, runs_dir, max(1, (os.cpu_count() or 1) // jobs))
        except subprocess.CalledProcessError as error:  # the next call takes its place again
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            print(f"trial {trial.number} broke off: {error}", file=sys.stderr)
        else:
            study.tell(trial, values)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run_next, range(trials)))


def table(study: optuna.Study, space: Space) -> str:
    """One line a trial that ended, the smallest distance first; of its choices, what differs."""
    import optuna

    ended = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    forms = {space.minimize: "{:.1f}", space.maximize: "{:.3f}"}
    if space.icons is not None:
        forms = {name: form for name, (_, form) in ICON_COLUMNS.items() if not name.startswith("images")}
    head = ["trial", "what differs", "images seen", *forms]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    plain = space.whole({})
    for t in sorted(ended, key=lambda t: t.values[0]):
        settings = ", ".join(f"{name}: {c}" for name, c in t.params.items() if c != plain[name]) or "nothing"
        seen: Any = t.user_attrs["images_seen"]
        cells = [form.format(t.user_attrs["scores"][name]) for name, form in forms.items()]
        lines.append(f"| {t.number} | {settings} | {seen:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", type=Path, default=STUDY, help="what is searched (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=1, help="how many (default: %(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="trials side by side; they share the cores (default: %(default)s)"
    )
    parser.add_argument("--runs_dir", type=Path, default=Path("runs/search"), help="where the runs go")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs} must be 1 or more")
    space = read_space(options.study)
    study = open_study(options.study)
    if not options.table:
        make_ready(study, space)
        search(study, space, options.runs_dir, options.trials, options.jobs)
    print(table(study, space))


if __name__ == "__main__":
    main()
