"""Train on a GPU that is lent for minutes, on a machine without network.

    python -m benchmarks.gpu_visit pack --out visit
    python -m benchmarks.gpu_visit run --minutes 10 --out results
    python -m benchmarks.gpu_visit join results --out runs/visit

`pack` writes a folder for the machine (benchmarks/gpu_pack.py). `run` is called in that folder, there; in a
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
import hashlib
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

# In a pack: the packages that the machine lacks.
sys.path.insert(0, str(Path(__file__).parents[1] / "site"))

import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.ablation import images_per_second, read_metrics
from benchmarks.gpu_pack import EXTRACTOR, GIT, REPOSITORY, pack, unpack
from benchmarks.machine import command_line, machine
from benchmarks.speed_race import STEPS_ONLY, Worker, settings
from imagen_pl.callbacks.base import callbacks_of, gan_of
from imagen_pl.callbacks.checkpoint import KeepCheckpoints
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.errors import UserError
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.storage.model_paths import DESCRIPTION, DISCRIMINATOR_WEIGHTS
from imagen_pl.training.step_logger import peak_memory_gb

RECIPE = "configs/experiment/icons32.yaml"
PART_BYTES, LARGEST_BYTES, MOST_PARTS = 15 * 2**20, 16 * 2**20, 3
CHECKPOINT_S = 90  # between two checkpoints
RESERVE_S = 60  # for the export; less in a visit of less than four minutes
STOP_S = 30  # from Ctrl-C to the end of a training
EXPORT_S = 180  # at most
COUNTED = 2  # steps whose FLOPs are counted: one with penalties, one without
BLOCK = 8  # steps: a multiple of the penalties' interval
TIMED_S = 3.0  # of steps
LONG_CALL_S = 0.02


class Report:
    """report.json, which is complete on the disk after each entry."""

    def __init__(self, file: Path) -> None:
        self.file, self.entries = file, dict[str, Any]()

    def add(self, **entries: Any) -> None:
        self.entries |= entries
        with atomic_write(self.file) as file:
            file.write((json.dumps(self.entries, indent=1) + "\n").encode())
        print(json.dumps(entries), flush=True)


# ------------------------------------------------------------------ the device


def environment() -> dict[str, Any]:
    """The machine, its device, and the device's peaks in bfloat16, TFLOP/s."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {
        **machine(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"device": properties.name, "memory_gb": properties.total_memory / 2**30}
    for name, make, first, largest in (
        ("matmul_tflops", _matmul, 128, 16384),
        ("convolution_tflops", _convolution, 1, 1024),
    ):
        try:
            found[name] = peak_tflops(make, device, first, largest)
        except RuntimeError as error:
            found[name] = f"not measured: {error}"
    torch.cuda.empty_cache()  # the trainings need the memory
    return found


Call = Callable[[], Tensor]


def _matmul(size: int, device: torch.device) -> tuple[Call, float]:
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return lambda: a @ b, 2.0 * size**3


def _convolution(images: int, device: torch.device) -> tuple[Call, float]:
    """3 x 3, 256 channels, 32 px."""
    x = torch.randn(images, 256, 32, 32, device=device, dtype=torch.bfloat16)
    weight = torch.randn(256, 256, 3, 3, device=device, dtype=torch.bfloat16)
    x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
    return lambda: F.conv2d(x, weight, padding=1), 2.0 * images * 32 * 32 * 9 * 256 * 256


@torch.inference_mode()
def peak_tflops(
    make: Callable[[int, torch.device], tuple[Call, float]], device: torch.device, size: int, largest: int
) -> float:
    """The best rate of a computation, whose size is doubled until a call takes 20 ms.

    Args:
        make: from size and device to a call and its FLOPs.
        device: where to compute.
        size, largest: the first size and the last.
    """
    best = 0.0
    while True:
        call, flops = make(size, device)
        call()
        fastest_s = min(_seconds(call, device) for _ in range(3))
        best = max(best, flops / fastest_s / 1e12)
        if fastest_s > LONG_CALL_S or size >= largest:
            return best
        size *= 2


def _seconds(call: Call, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


# ------------------------------------------------------------------ speed of steps


class FlopCount(TorchDispatchMode):
    """Counts FLOPs by torch's own formulas. Its FlopCounterMode cannot follow gradients of gradients."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


class StepCost(Callback):
    """Counts the FLOPs of the first two steps, and writes FLOPs per image and peak memory (GiB) as JSON.

    The first step has the gradient penalties, the second has none; both kinds are weighted by the penalties'
    interval. FLOPs of convolutions, matrix products and attention count, forward and backward.

    Args:
        file: written at the end of training.
        count: False counts no FLOPs, since counting would switch torch.compile off.
    """

    def __init__(self, file: str, count: bool = True) -> None:
        self.file, self.flops = Path(file), list[float]()
        self._counters = [FlopCount() for _ in range(COUNTED if count else 0)]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, i: int) -> None:
        if i < len(self._counters):
            self._counters[i].__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        if i < len(self._counters):
            self._counters[i].__exit__(None, None, None)
            self.flops.append(self._counters[i].total / len(batch))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = {"peak_memory_gb": peak_memory_gb(pl_module.device)}
        if len(self.flops) == COUNTED:
            every = max((penalty.every for penalty in gan_of(pl_module).penalties), default=1)
            found["flops_per_image"] = self.flops[1] + (self.flops[0] - self.flops[1]) / every
        self.file.write_text(json.dumps(found))


def step_speeds(
    words: Sequence[str],
    recipe: dict[str, Any],
    resolutions: Sequence[int],
    tree: Path,
    work: Path,
    until_s: float,
    modes: Sequence[bool] = (False, True),
) -> list[dict[str, Any]]:
    """Images/s of training steps at each resolution, eager and compiled.

    The first training fills the caches. Then the others start, and all make their first steps at once, which
    compile. Those that are ready after 60% of the time are then timed one after the other.

    Args:
        words: the words of `imagen-pl fit` that name the recipe.
        recipe: its settings.
        resolutions: sides of the images, px.
        tree: folder of the code.
        work: folder for files.
        until_s: `time.monotonic()` of the end.
        modes: whether to compile; eager steps come first, since only their FLOPs are counted.
    """
    workers: list[Worker] = []
    speeds: list[dict[str, Any]] = []
    try:
        for compiled, resolution in product(modes, resolutions):
            name = f"{resolution}px-{'compiled' if compiled else 'eager'}"
            overlay = at_resolution(recipe, resolution)
            (work / f"{name}.yaml").write_text(yaml.safe_dump(overlay))
            cost = {"file": str(work / f"{name}.json"), "count": not compiled}
            counter = {"class_path": "benchmarks.gpu_visit.StepCost", "init_args": cost}
            own = [f"--config={work}/{name}.yaml", f"--name={name}", f"--runs_dir={work}/speeds"]
            own += [*STEPS_ONLY, f"--model.compile={str(compiled).lower()}", "--max_images=1000000000"]
            own += [f"--trainer.callbacks+={json.dumps(counter)}"]
            workers.append(Worker(name, tree, ["fit", *words, *own], work / f"{name}.log"))
            batch_size = overlay["growth"]["stages"][0]["batch_size"]
            speeds.append({"resolution": resolution, "compiled": compiled, "batch_size": batch_size})
            if len(workers) == 1:  # its first message: it is ready
                workers[0].connection.poll(max(0.0, until_s - time.monotonic()) / 2)
        limit_s = 0.6 * max(0.0, until_s - time.monotonic())
        with ThreadPoolExecutor(len(workers)) as pool:
            prepared = pool.map(lambda worker: within(limit_s, worker, first_steps), workers)
            for found, more in zip(speeds, prepared, strict=True):
                found |= more
        flops: dict[int, float] = {}
        for number, (worker, found) in enumerate(zip(workers, speeds, strict=True)):
            if "failed" not in found:
                left = sum("failed" not in each for each in speeds[number:])
                share_s = (until_s - time.monotonic()) / left
                found |= within(max(0.0, share_s), worker, steady_speed)
            worker.close()
            with suppress(OSError, ValueError):
                found |= json.loads((work / f"{worker.name}.json").read_text())
            if "flops_per_image" in found:
                flops[found["resolution"]] = found["flops_per_image"]
            found["flops_per_image"] = flops.get(found["resolution"])
    finally:
        for worker in workers:
            worker.process.kill()
            worker.close()
    return speeds


def first_steps(worker: Worker) -> dict[str, Any]:
    precision = worker.ready()["precision"]
    worker.images_per_second(COUNTED)
    return {"precision": precision}


def steady_speed(worker: Worker) -> dict[str, Any]:
    """Images/s of about three seconds of steps, after a block that warms up."""
    start = time.monotonic()
    worker.images_per_second(BLOCK)
    steps = BLOCK * min(100, max(1, round(TIMED_S / (time.monotonic() - start))))
    return {"steps": steps, "images_per_second": worker.images_per_second(steps)}


def within(limit_s: float, worker: Worker, measure: Callable[[Worker], dict[str, Any]]) -> dict[str, Any]:
    """A measurement of a training, or why there is none; after the limit the training is killed."""
    late = threading.Event()

    def stop() -> None:
        late.set()
        worker.process.kill()

    timer = threading.Timer(limit_s, stop)
    timer.start()
    try:
        return measure(worker)
    except (SystemExit, OSError) as error:
        return {"failed": f"not done after {limit_s:.0f} s" if late.is_set() else str(error)[-1500:]}
    finally:
        timer.cancel()


def merged(first: Any, second: Any) -> Any:
    """Settings with those of an overlay on top, as `imagen-pl fit` reads several configurations."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first | {name: merged(first.get(name), value) for name, value in second.items()}
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [merged(*pair) for pair in zip(first, second, strict=True)]
    return second


def read_recipe(configs: Sequence[str], pairs: Sequence[str]) -> dict[str, Any]:
    """The settings of configurations and of KEY=VALUE."""
    found: dict[str, Any] = {}
    for file in configs:
        found = merged(found, yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    for pair in pairs:
        key, _, value = pair.partition("=")
        nested = yaml.safe_load(value)
        for name in reversed(key.split(".")):
            nested = {name: nested}
        found = merged(found, nested)
    return found


def at_resolution(recipe: dict[str, Any], resolution: int) -> dict[str, Any]:
    """An overlay that trains at one resolution, with networks that reach it."""
    networks = {name: extended(recipe["model"][name], resolution) for name in ("generator", "discriminator")}
    stage = {
        "resolution": resolution,
        "kimg": 1e6,
        "batch_size": recipe["growth"]["stages"][-1]["batch_size"],
    }
    return {"growth": {"stages": [stage]}, "model": networks}


def extended(part: Any, resolution: int) -> Any:
    """A network's settings up to a resolution: `channels`, halved at each one, and `resolutions`."""
    if isinstance(part, list):
        return [extended(each, resolution) for each in part]
    if not isinstance(part, dict):
        return part
    made = {name: extended(value, resolution) for name, value in part.items()}
    if isinstance(channels := made.get("channels"), dict):
        while (largest := max(channels)) < resolution:
            channels[2 * largest] = max(channels[largest] // 2, min(channels[largest], 16))
    if isinstance(resolutions := made.get("resolutions"), list):
        while resolutions[-1] < resolution:
            resolutions.append(2 * resolutions[-1])
    return made


# ------------------------------------------------------------------ training


class TimedCheckpoints(Callback):
    """Writes last.ckpt at least every so many seconds of training."""

    def __init__(self, every_s: float) -> None:
        self.every_s, self._saved_s = every_s, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        if time.monotonic() - self._saved_s >= self.every_s:
            self._saved_s = time.monotonic()
            next(c for c in callbacks_of(trainer) if isinstance(c, KeepCheckpoints)).save_last_now(trainer)


def train(words: Sequence[str], tree: Path, work: Path, until_s: float) -> dict[str, Any]:
    """Train until a time, `time.monotonic()`: what was done."""
    left_s = max(10.0, until_s - time.monotonic())
    limit_s = round(left_s - min(15, left_s / 4))  # the process has to start and to end
    clock = f"00:{limit_s // 3600:02}:{limit_s // 60 % 60:02}:{limit_s % 60:02}"
    saver = {"class_path": "benchmarks.gpu_visit.TimedCheckpoints", "init_args": {"every_s": CHECKPOINT_S}}
    own = ["--name=visit", f"--runs_dir={work}/runs", f"--trainer.max_time={clock}"]
    own += ["--trainer.enable_progress_bar=false", f"--trainer.callbacks+={json.dumps(saver)}"]
    start = time.monotonic()
    code = child(["fit", *words, *own], tree, work / "training.log", left_s)
    found: dict[str, Any] = {"exit_code": code, "seconds": time.monotonic() - start, "max_time": clock}
    with suppress(OSError, IndexError, KeyError, ValueError):  # of a training that was killed, half a row
        rows = read_metrics(work / "runs/visit/metrics.csv")
        found["images_seen"] = int(rows[-1]["images_seen"])
        with suppress(ZeroDivisionError):
            found["images_per_second"] = images_per_second(rows)
    return found


def child(words: Sequence[str], tree: Path, log: Path, limit_s: float) -> int:
    """Run `imagen-pl` as a process; after the limit it gets a Ctrl-C, and half a minute to stop."""
    command = [sys.executable, "-m", "imagen_pl.cli.main", *words]
    with log.open("w") as printed:
        process = subprocess.Popen(
            command, cwd=tree, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT
        )
    try:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(limit_s)
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(STOP_S)
        return -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


# ------------------------------------------------------------------ what comes back


def draw_curves(metrics: Path, out: Path) -> None:
    """Losses and images/s over the images seen."""
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    figure = Figure(figsize=(8, 7), layout="constrained")
    losses, speed = figure.subplots(2, sharex=True)
    for axes, name in ((losses, "d_loss"), (losses, "g_loss"), (speed, "images_per_second")):
        pairs = [(row["images_seen"], row[f"train/{name}"]) for row in rows if f"train/{name}" in row]
        axes.plot(*zip(*pairs, strict=True) if pairs else ([], []), label=name, linewidth=1)
    losses.set(ylabel="loss")
    losses.legend()
    speed.set(xlabel="images seen", ylabel="images/s", ylim=(0, None))
    figure.savefig(out, dpi=100)


def write_model(run: Path, tree: Path, work: Path, out: Path) -> dict[str, Any]:
    """Export the run's model in float16, in parts; without the discriminator if they are too many.

    Returns:
        The hash (SHA-256) of each part by its name, whether the discriminator is among them, or the reason
        why there is no model.
    """
    model, log = work / "model", work / "export.log"
    words = ["export", str(run), "--to=safetensors", "--half", "--with-discriminator", f"--out={model}"]
    if code := child(words, tree, log, EXPORT_S):
        return {"failed": f"imagen-pl export ended with {code}: {log.read_text()[-1500:]}"}
    parts = split(model)
    with_discriminator = len(parts) <= MOST_PARTS
    if not with_discriminator:
        (model / DISCRIMINATOR_WEIGHTS).unlink()
        description = json.loads((model / DESCRIPTION).read_text())
        del description["discriminator"]
        (model / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        parts = split(model)
    if len(parts) > MOST_PARTS:
        return {"failed": f"{len(parts)} parts of 15 MiB are more than {MOST_PARTS}"}
    hashes = {f"model.tar.{i:02}": hashlib.sha256(part).hexdigest() for i, part in enumerate(parts)}
    for name, part in zip(hashes, parts, strict=True):
        (out / name).write_bytes(part)
    return {"parts": hashes, "with_discriminator": with_discriminator}


def split(folder: Path) -> list[bytes]:
    """A tar archive of a folder's files, in parts of at most 15 MiB."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    content = archive.getvalue()
    return [content[i : i + PART_BYTES] for i in range(0, len(content), PART_BYTES)]


def join(results: Path, out: Path) -> None:
    """Make a release folder of the parts of a model.

    Args:
        results: folder that `run` wrote.
        out: a new or empty folder.

    Raises:
        UserError: the report lists no model, a part is missing or damaged, or the folder is not empty.
    """
    try:
        parts = json.loads((results / "report.json").read_text())["model"]["parts"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{results} has no report.json that lists the parts of a model") from None
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty: name another folder")
    content = b""
    for name, expected in parts.items():
        if not (results / name).is_file():
            raise UserError(f"{results / name} is missing: copy it again")
        part = (results / name).read_bytes()
        if hashlib.sha256(part).hexdigest() != expected:
            raise UserError(f"{results / name} is damaged: copy it again")
        content += part
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.extractall(out, filter="data")


def keep(source: Path | None, out: Path) -> str | None:
    """Copy a file to the results; the reason if it cannot be kept."""
    if source is None or not source.is_file():
        return "there is none"
    if source.stat().st_size > LARGEST_BYTES:
        return f"{source.stat().st_size / 2**20:.1f} MiB are too many"
    shutil.copyfile(source, out)
    return None


# ------------------------------------------------------------------ the visit


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


def with_share(speeds: list[dict[str, Any]], peak_tflops: float | str) -> list[dict[str, Any]]:
    """Measurements with their share of the device's peak, where both are known."""
    for found in speeds:
        flops, speed = found.get("flops_per_image"), found.get("images_per_second")
        if flops and speed and isinstance(peak_tflops, float):
            found["share_of_matmul_peak"] = speed * flops / 1e12 / peak_tflops
    return speeds


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
