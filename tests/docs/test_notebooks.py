"""The code of every notebook runs from its first cell to its last, with training cut short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
# What each writes to the disk.
LEAVES: dict[str, list[str]] = {
    "quickstart": ["release/model.safetensors"],
    "ablations": [],
    "first_gans": [],
}


def cells(notebook: Path) -> list[dict[str, object]]:
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_committed(notebook: Path) -> None:
    assert [cell["execution_count"] for cell in cells(notebook)] == [*range(1, len(cells(notebook)) + 1)]
    output = json.dumps([cell["outputs"] for cell in cells(notebook)])
    assert "image/png" in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_runs(notebook: Path, tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    lines = [line for cell in cells(notebook) for line in ["".join(cell["source"])]]  # type: ignore[arg-type]
    code = "\n\n".join(lines).replace("MINUTES = 2", "MINUTES = 0.05")
    script.write_text(code, encoding="utf-8")
    for name in ("configs", "benchmarks"):
        (tmp_path / name).symlink_to(notebook.parents[1] / name)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(notebook.parents[1])},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    for left in LEAVES[notebook.stem]:
        assert (tmp_path / left).is_file()
