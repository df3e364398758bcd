"""The benchmarks' scripts as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).parents[1]


def benchmark(name: str) -> ModuleType:
    """benchmarks/NAME.py, loaded without running its command; it finds its neighbours."""
    if (folder := str(REPOSITORY / "benchmarks")) not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for what annotations name
    spec.loader.exec_module(module)
    return module
