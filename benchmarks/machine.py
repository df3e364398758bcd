"""What a benchmark notes about its own call and the machine that it ran on."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
# Variables that keep torch and oneDNN from using instructions that a CPU has.
MASKS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def command_line() -> str:
    """How the running benchmark was called, without the machine's paths."""
    file = Path(sys.argv[0])
    name = file.parent.name if file.stem == "__main__" else file.stem
    return shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def machine() -> dict[str, Any]:
    """CPU, cores, instructions, and the variables that mask some of them."""
    # Earlier versions of torch have no get_capabilities.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_model(),
        "cores": cores,
        "instructions": {name: bool(capabilities.get(name)) for name in INSTRUCTIONS},
        "masks": {name: os.environ[name] for name in MASKS if name in os.environ},
        "torch": torch.__version__,
    }


def describe_machine() -> str:
    """The machine in one line."""
    found = machine()
    has = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in found["instructions"].items())
    masks = ", ".join(f"{name}={value}" for name, value in found["masks"].items())
    return (
        f"{found['cpu']}, {found['cores']} cores for this process; {has}; "
        f"{masks or 'none of them masked'}; torch {found['torch']}"
    )
