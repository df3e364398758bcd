"""Two processes over gloo are started once; every test reads the files that they write."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import worker

REPOSITORY = Path(__file__).parents[2]

Outcome = dict[str, Any]


@pytest.fixture(scope="session")
def _two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*launcher, "-m", "tests.distributed.worker", str(folder)],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def ranks(_two_processes: Path) -> Callable[[str], list[Outcome]]:
    """The state of each of the two processes after a run of that name."""
    return lambda name: [torch.load(_two_processes / f"{name}-{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="session")
def alone() -> Outcome:
    """The state of one process with twice as many images a step as each of the two."""
    return worker.run(worker.uncoupled(), worker.END)
