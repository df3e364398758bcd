"""Images/s of training steps at several resolutions, eager and compiled, within a deadline."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.speed_race import STEPS_ONLY, Worker
from imagen_pl.callbacks.base import gan_of
from imagen_pl.training.step_logger import peak_memory_gb

COUNTED = 2  # steps whose FLOPs are counted: one with penalties, one without
BLOCK = 8  # steps: a multiple of the penalties' interval
TIMED_S = 3.0  # of steps


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
            counter = {"class_path": "benchmarks.gpu_visit.speeds.StepCost", "init_args": cost}
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


def with_share(speeds: list[dict[str, Any]], peak_tflops: float | str) -> list[dict[str, Any]]:
    """Measurements with their share of the device's peak, where both are known."""
    for found in speeds:
        flops, speed = found.get("flops_per_image"), found.get("images_per_second")
        if flops and speed and isinstance(peak_tflops, float):
            found["share_of_matmul_peak"] = speed * flops / 1e12 / peak_tflops
    return speeds
