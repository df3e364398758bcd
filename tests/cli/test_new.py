"""`imagen-pl new`: the project that it writes passes its own tests, and trains with one command."""

from __future__ import annotations

import configparser
import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image, ImageChops

from imagen_pl.cli.main import main
from imagen_pl.cli.new import PLACEHOLDER, TEMPLATE
from imagen_pl.data.skipped_images import SkippedImages
from tests.docs.test_docs import EXAMPLES
from tests.helpers.commands import one_line_error
from tests.helpers.runs import REPOSITORY

FILES = {
    ".github/workflows/ci.yml",
    ".gitignore",
    "README.md",
    "configs/discs.yaml",
    "notebooks/samples.ipynb",
    "pyproject.toml",
    "requirements.txt",
    "setup.cfg",
    "shapes/__init__.py",
    "shapes/discs.py",
    "shapes/warmth.py",
    "tests/test_discs.py",
    "tests/test_training.py",
    "tests/test_warmth.py",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "shapes"]) == 0
    return tmp_path / "shapes"


def python(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the project, with the project and imagen_pl on PYTHONPATH."""
    path = os.pathsep.join([str(project), str(REPOSITORY)])
    return subprocess.run(
        [sys.executable, *words],
        cwd=project,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_project_has_all_files_and_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "shapes"]) == 0
    project = tmp_path / "shapes"
    files = {p.relative_to(project).as_posix() for p in project.rglob("*") if p.is_file()}
    assert files == FILES
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "Train it: cd shapes && PYTHONPATH=. imagen-pl fit --config configs/discs.yaml"
    assert {line.removeprefix("shapes/") for line in printed[:-1]} == FILES
    assert [file for file in FILES if PLACEHOLDER in (project / file).read_text()] == []
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]  # no temporary folder is left
    setup = configparser.ConfigParser()
    setup.read(project / "setup.cfg")
    assert setup["metadata"]["name"] == "shapes"
    jobs = yaml.safe_load((project / ".github/workflows/ci.yml").read_text())["jobs"]
    assert {"run": "pip install -r requirements.txt"} in jobs["tests"]["steps"]
    for name in (line.split()[0] for line in table_of_files(project)):
        assert (project / name).exists(), name


def table_of_files(project: Path) -> list[str]:
    readme = (project / "README.md").read_text()
    return readme.split("```text\n")[1].split("```")[0].splitlines()


def test_the_projects_tests_and_linter_pass(project: Path) -> None:
    done = python(project, "-m", "ruff", "check", "--no-cache")
    assert done.returncode == 0, done.stdout
    done = python(project, "-m", "pytest", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "4 passed" in done.stdout


def test_the_configuration_trains_and_the_notebook_samples(project: Path) -> None:
    words = ["fit", "--config", "configs/discs.yaml", "--trainer.max_steps", "4"]
    short = ["--trainer.log_every_n_steps", "1", "--data.num_workers", "0", "--data.source.sizes", "8"]
    done = python(project, "-m", "imagen_pl.cli.main", *words, *short)
    assert done.returncode == 0, done.stderr[-3000:]
    with (project / "runs/discs/metrics.csv").open() as file:
        assert any(row.get("train/g_warmth") for row in csv.DictReader(file))

    cells = json.loads((project / "notebooks/samples.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    script = project / "notebooks/cells.py"
    script.write_text("\n".join([*code, "print(len(pictures))"]))
    drawn = python(project, str(script))
    assert drawn.returncode == 0, drawn.stderr[-3000:]
    assert drawn.stdout.splitlines() == ["16 px after 64 images", "12"]


@pytest.fixture
def modules() -> dict[str, Any]:
    """The template's modules, and the examples of docs/extending.md, by name."""
    found: dict[str, Any] = {}
    for name in ("discs", "warmth"):
        file = TEMPLATE / PLACEHOLDER / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"template_{name}", file)
        assert spec is not None
        assert spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    for name in ("discs", "warm"):
        example: dict[str, Any] = {"__name__": f"example_{name}"}
        exec(EXAMPLES[f"{name}.py"], example)
        found[f"docs_{name}"] = SimpleNamespace(**example)
    return found


def test_source_and_loss_equal_those_of_the_documentation(modules: dict[str, Any]) -> None:
    ours, shown = modules["discs"].Discs(sizes=4), modules["docs_discs"].Discs(sizes=4)
    rows, same = ours.load(SkippedImages()), shown.load(SkippedImages())
    assert rows == same
    for row in rows["train"]:
        a, b = (Image.open(io.BytesIO(source.image(row))) for source in (ours, shown))
        assert ImageChops.difference(a, b).getbbox() is None
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = SimpleNamespace(images=images)
    a, b = (
        term.forward(None, None, inputs)
        for term in (modules["warmth"].Warmth(), modules["docs_warm"].Warmth())
    )
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-project", "'my-project' cannot be the name of a Python package: use letters, digits and _"),
        ("../shapes", "'../shapes' cannot be the name of a Python package"),
        ("2discs", "'2discs' cannot be the name of a Python package"),
        ("class", "'class' cannot be the name of a Python package"),
        ("taken", "taken already exists in this folder: choose another name, or move it away"),
        ("torch", "torch is the name of an existing package or folder: choose another name"),
        ("tests", "tests is the name of an existing package or folder"),
    ],
)
def test_a_bad_name_gives_one_line(
    name: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    assert message in one_line_error(["new", name], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
