"""`imagen-pl plan`: a configuration for a data set, a time and this machine."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.cli.options import verb_parser
from imagen_pl.errors import UserError

if TYPE_CHECKING:
    from imagen_pl.planning.planner import Measure

RESOLUTIONS = (8, 16, 32, 64, 128, 256)
_USUAL_TFLOPS = 10.0


def run(argv: Sequence[str]) -> int:
    """Run `imagen-pl plan ARGV`.

    Raises:
        UserError: the data cannot be read, or the file already exists.
        SystemExit: as argparse does.
    """
    options = make_parser().parse_args(argv)
    out: Path = options.out or Path("configs") / f"{options.name or default_name(options.source)}.yaml"
    if out.exists():
        raise UserError(f"{out} already exists: give another --name or --out, or remove it")

    from imagen_pl.cli.lightning_cli import quieten
    from imagen_pl.data.inspect import guess_source
    from imagen_pl.planning.data_profile import profile
    from imagen_pl.planning.expectations import lines, warnings
    from imagen_pl.planning.planner import Budget, make_plan
    from imagen_pl.planning.recipe import recipe
    from imagen_pl.planning.settings import to_yaml
    from imagen_pl.storage.atomic_files import atomic_write

    quieten()
    guess_source(options.source)  # a source that does not exist is reported at once
    measure, gpus = _measure(options.gpus, options.tflops)
    budget = Budget(options.hours, gpus, options.resolution)
    data = profile(options.source)
    for line in data.lines():
        print(line, flush=True)
    plan = make_plan(data, budget, measure)
    for line in lines(plan):
        print(line)
    for line in warnings(plan):
        print(f"Warning: {line}")
    head = _head(options, out, [*data.lines(), *lines(plan)])
    with atomic_write(out) as file:
        file.write(to_yaml(recipe(plan), head).encode())
    print(f"Wrote {out}. Train: imagen-pl fit --config {out}")
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "plan",
        "Write a configuration for a data set and a training time. It reads the data, measures this "
        "machine's speed for about half a minute, and chooses resolution, channels, batch size, growth "
        "stages, penalty weights, schedules and losses by rules. Each setting in the file has a comment "
        "that says why. docs/planning.md lists the rules.",
    )
    parser.add_argument(
        "source",
        help="a folder of captioned images, a .parquet file or a folder of them, COCO's captions JSON or "
        'folder, WebDataset shards ("shards/{000..099}.tar"), hf:NAME for a data set on the Hugging Face '
        "hub, or emoji, which comes with this package",
    )
    parser.add_argument(
        "--hours",
        type=_positive,
        required=True,
        metavar="H",
        help="training time in hours, for example 8 or 0.13",
    )
    parser.add_argument(
        "--resolution",
        type=int,
        choices=RESOLUTIONS,
        help="side of the images, px (default: the largest for which data and time are enough)",
    )
    parser.add_argument(
        "--gpus",
        type=_count,
        metavar="N",
        help="GPUs to train on, 0 for the CPU (default: all GPUs of this machine)",
    )
    parser.add_argument(
        "--tflops",
        type=_positive,
        metavar="T",
        help="plan for GPUs that are not in this machine: speed of one in training, 10^12 operations per "
        f"second (default: measure; {_USUAL_TFLOPS:g} if --gpus is given and this machine has none)",
    )
    parser.add_argument("--name", type=_name, help="name of the file and of the run (default: the data's)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: configs/NAME.yaml)")
    return parser


def default_name(source: str) -> str:
    """The name of the data: of the folder or file without its suffix; of shards, that of their folder."""
    path = Path(source.removeprefix("hf:"))
    if path.suffix == ".tar":
        path = path.parent
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", (path if path.name != "." else path.resolve()).stem).strip("_")
    return name or "plan"


def _measure(gpus: int | None, tflops: float | None) -> tuple[Measure, int]:
    """The function that gives the speed, and the number of GPUs to plan for."""
    import torch

    from imagen_pl.planning import speed
    from imagen_pl.planning.planner import assume_speed
    from imagen_pl.training.precision import choose_precision

    present = torch.cuda.device_count()
    gpus = present if gpus is None else gpus
    if tflops is None and (gpus == 0 or present):
        if gpus > present:
            print(
                f"This machine has {present} of {gpus} GPUs: one is measured, the others are assumed to be "
                "equal."
            )
        choice = choose_precision("gpu" if gpus else "cpu")
        print(f"Precision: {choice.name}, {choice.reason}.")
        print("Measuring this machine's speed, for about half a minute ...", flush=True)
        return speed.measure, gpus
    rate = tflops or _USUAL_TFLOPS
    print(f"The speed is not measured but computed, for {rate:g} TFLOP/s per GPU in training (--tflops).")
    return assume_speed(rate), gpus


def _head(options: argparse.Namespace, out: Path, lines: Sequence[str]) -> str:
    """The comment at the top of the file: how it was made, how to use it, what to expect."""
    source = shlex.quote(options.source)
    return "\n".join(
        [
            f"Made by `imagen-pl plan {source} --hours {options.hours:g}`; docs/planning.md explains the "
            "rules.",
            "",
            f"  imagen-pl fit --config {out}",
            "",
            *lines,
        ]
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be more than 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more")
    return value


def _name(text: str) -> str:
    if not text or Path(text).name != text:
        raise argparse.ArgumentTypeError(f"{text!r} must be a plain name; --out says where the file goes")
    return text
