"""Requirements: training works without optional packages, and every imported package is listed."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from tests.helpers.runs import REPOSITORY, Tiny

# Packages of extras, and wandb, which is installed by default but must not be needed.
ABSENT = (
    "wandb", "datasets", "gradio", "gradio_client", "webdataset", "tensorboard", "matplotlib", "diffusers",
    "vtracer", "av", "onnx", "onnxruntime", "onnxscript", "resvg_py", "pycocoevalcap",
)  # fmt: skip
BUILT_IN = sys.stdlib_module_names


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to all installed packages except the absent ones, so that their metadata is missing too."""
    folder = tmp_path_factory.mktemp("packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        name = entry.name.split("-")[0].split(".")[0].lower()
        if name not in ABSENT and not entry.name.startswith(("__editable__", "imagen_pl")):
            (folder / entry.name).symlink_to(entry)
    return folder


def core(packages: Path, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run `imagen-pl` with these packages only: -S leaves out site-packages."""
    path = os.pathsep.join([str(REPOSITORY), str(packages)])
    return subprocess.run(
        [sys.executable, "-S", "-m", "imagen_pl.cli.main", *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_core_trains_and_samples_without_optional_packages(packages: Path, tiny: Tiny) -> None:
    for module in ("wandb", "datasets", "gradio"):
        done = subprocess.run(
            [sys.executable, "-S", "-c", f"import {module}"],
            env={**os.environ, "PYTHONPATH": str(packages)},
            capture_output=True,
            text=True,
        )
        assert f"No module named '{module}'" in done.stderr

    done = core(packages, ["fit", *tiny.words])
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tiny.run / "checkpoints/best.ckpt").is_file()
    done = core(packages, ["sample", str(tiny.run), "a red heart", "--out", "heart.png"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert Path("heart.png").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"data": {"source": {"class_path": "HuggingFaceSource", "init_args": {"path": "owner/name"}}}},
            "error: Hugging Face data sets need a package: pip install datasets\n",
        ),
        (
            {"data": {"source": {"class_path": "WebDatasetSource", "init_args": {"path": "shards/"}}}},
            "error: WebDataset shards need a package: pip install webdataset\n",
        ),
        (
            {"trainer": {"logger": [{"class_path": "lightning.pytorch.loggers.WandbLogger"}]}},
            "error: WandbLogger needs a package: pip install wandb\n",
        ),
        (
            {
                "trainer": {
                    "logger": [
                        {
                            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                            "init_args": {"save_dir": "runs"},
                        }
                    ]
                }
            },
            "error: TensorBoardLogger needs a package: pip install tensorboard\n",
        ),
    ],
    ids=["datasets", "webdataset", "wandb", "tensorboard"],
)
def test_a_missing_package_gives_one_line(
    settings: dict[str, object], message: str, packages: Path, tiny: Tiny
) -> None:
    Path("more.yaml").write_text(yaml.safe_dump(settings))
    done = core(packages, ["fit", *tiny.words, "--config", "more.yaml"])
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stderr.endswith(message)
    assert "Traceback" not in done.stderr


# The tests use fsspec's memory:// instead.
UNTESTED = {"s3fs"}


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    return parser


def names(requirements: str) -> set[str]:
    """Normalised names of distributions."""
    lines = [line.strip() for line in requirements.splitlines() if not line.strip().startswith("#")]
    found = [re.match(r"[\w.-]+", line) for line in lines]
    return {one_spelling(match[0]) for match in found if match is not None}


def one_spelling(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_each_package_that_the_code_imports_is_a_requirement_or_an_extra() -> None:
    parser = setup()
    listed = names(parser["options"]["install_requires"])
    for extra, requirements in parser["options.extras_require"].items():
        if extra != "dev":
            listed |= names(requirements)
    # Dependencies of listed packages: PyYAML of jsonargparse and Lightning, huggingface_hub of transformers,
    # aiohttp of fsspec[http].
    listed |= {"pyyaml", "huggingface-hub", "tqdm", "tokenizers", "aiohttp", "imagen-pl"}
    distributions = packages_distributions()
    missing = set()
    for path in (REPOSITORY / "imagen_pl").rglob("*.py"):
        if "project_template" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in {name.partition(".")[0] for name in found} - BUILT_IN:
                owners = {one_spelling(owner) for owner in distributions.get(module, [module])}
                if owners.isdisjoint(listed):
                    missing.add(f"{path.name}: {module}")
    assert missing == set()


def test_the_exact_versions_are_of_the_packages_that_setup_lists() -> None:
    parser = setup()
    listed = names(parser["options"]["install_requires"])
    for requirements in parser["options.extras_require"].values():
        listed |= names(requirements)
    exact = names((REPOSITORY / "requirements.txt").read_text())
    assert exact == listed - {"imagen-pl", *UNTESTED}


def test_dev_holds_every_extra_and_documents_name_only_those_that_exist() -> None:
    extras = set(setup()["options.extras_require"])
    first = setup()["options.extras_require"]["dev"].split()[0]
    assert set(first.removeprefix("imagen_pl[").rstrip("]").split(",")) == extras - {"dev", "notebooks", "s3"}
    files = [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "imagen_pl").rglob("*.py"),
    ]
    for file in files:
        for named in re.findall(r"imagen_pl\[([a-z,]+)\]", file.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= extras, f"{file.name}: {named}"
