"""Train on a GPU that is lent for minutes, on a machine without network.

    python -m benchmarks.gpu_visit pack --out visit
    python -m benchmarks.gpu_visit run --minutes 10 --out results
    python -m benchmarks.gpu_visit join results --out runs/visit

`pack` writes a folder for the machine (pack.py). `run` is called in that folder, there; in a
checkout it is a rehearsal. It measures the device and the speed of training steps at 64 and 128 px, eager and
compiled, trains the recipe for the rest of the time, and leaves at most eight files of at most 16 MiB:

    report.json          rewritten after each step, so an interrupted visit has it too
    metrics.csv          of the training
    curves.png           its losses and its speed
    samples.png          its last samples
    log.txt              the end of what it printed
    model.tar.00, ...    the exported model in parts

A measurement that fails or takes too long is recorded with the reason. `join` makes a folder of the parts
that `imagen-pl sample` opens.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

# In a pack: the packages that the machine lacks.
sys.path.insert(0, str(Path(__file__).parents[2] / "site"))

from benchmarks.gpu_visit.device import environment
from benchmarks.gpu_visit.pack import EXTRACTOR, GIT, REPOSITORY, pack, unpack
from benchmarks.gpu_visit.results import Report, draw_curves, join, keep, write_model
from benchmarks.gpu_visit.speeds import read_recipe, step_speeds, with_share
from benchmarks.gpu_visit.training import train
from benchmarks.machine import command_line
from benchmarks.speed_race import settings
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.errors import UserError

RECIPE = "configs/experiment/icons64.yaml"
RESERVE_S = 60  # for the export; less in a visit of less than four minutes


def visit(options: argparse.Namespace) -> int:
    """Measure, train and export; 1 if there is no model at the end.

    Raises:
        UserError: --out is not empty, or a setting or a recipe does not exist.
    """
    begin_s, total_s = time.monotonic(), 60 * options.minutes
    out, tree = options.out, options.pack.absolute()
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty: name another folder")
    configs = [
        str((Path(file) if Path(file).exists() else tree / file).absolute()) for file in options.config
    ]
    for file in configs:
        if not Path(file).is_file():
            raise UserError(f"--config {file}: there is no such file")
    report = Report(out / "report.json")
    commit = tree / GIT
    report.add(command=command_line(), git=json.loads(commit.read_text()) if commit.exists() else git_state())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        weights = tree / "weights"
        if weights.is_dir():
            unpack(weights, work / "packages")
            os.environ["IMAGEN_PL_CACHE"] = str(work / "cache")
        paths = [work / "packages", tree / "site", tree, os.environ.get("PYTHONPATH", "")]
        os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, map(str, paths))), "HF_HUB_OFFLINE": "1"}
        report.add(environment=environment())

        words = [*(f"--config={file}" for file in configs), *settings(options.set)]
        words += [f"--{key}={options.seed}" for key in ("seed_everything", "model.seed", "data.seed")]
        if weights.is_dir() and not (weights / f"{EXTRACTOR}.pth").exists():
            words += ["--model.metrics=[]", "--checkpoint.monitor=null"]
        speed_s = min(90, total_s / 10 + 30) if options.speed_s is None else options.speed_s
        if options.resolutions:
            until_s = time.monotonic() + speed_s
            try:
                recipe = read_recipe(configs, options.set)
                speeds = step_speeds(words, recipe, options.resolutions, tree, work, until_s)
                report.add(speeds=with_share(speeds, report.entries["environment"]["matmul_tflops"]))
            except Exception as error:  # whatever it is, the training matters more
                report.add(speeds=f"not measured: {error!r}")

        reserve_s = min(RESERVE_S, total_s / 4)
        report.add(training=train(words, tree, work, begin_s + total_s - reserve_s))
        run = work / "runs/visit"
        samples = max((run / "samples").glob("*.png"), default=None)
        left_out = {"metrics.csv": keep(run / "metrics.csv", out / "metrics.csv")}
        left_out["samples.png"] = keep(samples, out / "samples.png")
        (out / "log.txt").write_text((work / "training.log").read_text(errors="replace")[-200_000:])
        try:
            draw_curves(run / "metrics.csv", out / "curves.png")
        except (OSError, KeyError, ValueError) as error:
            left_out["curves.png"] = repr(error)
        report.add(left_out={name: why for name, why in left_out.items() if why})
        report.add(model=write_model(run, tree, work, out), seconds=time.monotonic() - begin_s)
    return int("failed" in report.entries["model"])


def make_parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = made.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack", help="write the folder for the machine")
    packing.add_argument("--icons", type=Path, metavar="FOLDER", help="icons in place of the package's own")
    packing.add_argument("--limit_mb", type=float, default=64, help="largest size, MB (default: %(default)s)")
    packing.add_argument("--extractor", action="store_true", help="add the network of the validation metrics")
    running = verbs.add_parser("run", help="measure, train and export")
    running.add_argument("--minutes", type=float, required=True, help="length of the visit")
    running.add_argument(
        "--config",
        nargs="+",
        default=[RECIPE],
        metavar="RECIPE",
        help=f"recipe and overlays (default: {RECIPE})",
    )
    running.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings, as `imagen-pl fit` takes them"
    )
    running.add_argument(
        "--pack", type=Path, default=REPOSITORY, help="folder that `pack` wrote (default: that of this code)"
    )
    running.add_argument("--seed", type=int, default=0, help="of the training (default: %(default)s)")
    running.add_argument(
        "--resolutions", nargs="*", type=int, default=[64, 128], metavar="PX", help="whose steps are timed"
    )
    running.add_argument(
        "--speed_s", type=float, help="seconds for that (default: a tenth of the visit and 30, at most 90)"
    )
    joining = verbs.add_parser("join", help="make a model of its parts")
    joining.add_argument("results", type=Path, help="folder that `run` wrote")
    for verb in (packing, running, joining):
        verb.add_argument("--out", type=Path, required=True, help="a new folder")
    return made


def main() -> int:
    parser = make_parser()
    # As after Ctrl-C: the trainings end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = parser.parse_args()
    try:
        if options.verb == "run":
            return visit(options)
        if options.verb == "pack":
            pack(options.out, options.icons, options.limit_mb, options.extractor)
        else:
            join(options.results, options.out)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
