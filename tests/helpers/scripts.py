"""The benchmarks' scripts as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).parents[2]


def benchmark(path: str) -> ModuleType:
    """benchmarks/PATH.py, loaded without running its command; it finds its neighbours."""
    file = REPOSITORY / "benchmarks" / f"{path}.py"
    if (folder := str(file.parent)) not in sys.path:
        sys.path.append(folder)
    name = file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for what annotations name
    spec.loader.exec_module(module)
    return module
