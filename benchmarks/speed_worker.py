"""A training that benchmarks/speed.py starts, times and pauses: `imagen-pl fit` with one callback more.

It is run as a file, with the tree of any commit on PYTHONPATH, so it uses only what all commits share: the
console command, and the module's `images_seen`.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class BlockTimer(Callback):
    """Trains blocks of steps, as many as it is sent, and waits between them.

    It first sends a dictionary that describes the training. For each number of steps it receives, it trains
    these steps and sends (images, seconds). 0 ends the training.

    Args:
        connection: file descriptor of a `multiprocessing.connection.Connection` to the benchmark.
    """

    def __init__(self, connection: int) -> None:
        self.connection = Connection(connection)
        self.steps_left, self.first_image, self.began_s = 0, 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.connection.send(
            {
                "package": sys.modules[type(pl_module).__module__].__file__,
                "device": pl_module.device.type,
                "precision": str(trainer.precision),
                "threads": torch.get_num_threads(),
            }
        )
        self._wait_for_block(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps_left -= 1
        if self.steps_left == 0:
            seconds = _now_s(pl_module) - self.began_s
            self.connection.send((images_seen(pl_module) - self.first_image, seconds))
            self._wait_for_block(trainer, pl_module)

    def _wait_for_block(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps_left = self.connection.recv()
        trainer.should_stop = self.steps_left == 0
        self.first_image, self.began_s = images_seen(pl_module), _now_s(pl_module)


def images_seen(module: LightningModule) -> int:
    seen = module.images_seen
    assert isinstance(seen, int)
    return seen


def _now_s(module: LightningModule) -> float:
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
    return time.perf_counter()


def main() -> int:
    """Call `imagen-pl` with the words after the first argument, which is the connection's file descriptor."""
    connection, words = int(sys.argv[1]), sys.argv[2:]
    timer = {"class_path": "__main__.BlockTimer", "init_args": {"connection": connection}}
    command = importlib.import_module("imagen_pl.cli")
    if not hasattr(command, "main"):  # a package; up to af54387 it was a module
        command = importlib.import_module("imagen_pl.cli.main")
    code = command.main([*words, "--trainer.callbacks+", json.dumps(timer)])
    assert isinstance(code, int)
    return code


if __name__ == "__main__":
    sys.exit(main())
