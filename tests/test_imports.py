"""Imports point downward only, and the core trains without optional packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imagen_pl

PACKAGE = Path(imagen_pl.__file__).parent

# From the bottom up. A part imports itself and parts below it; parts of one row do not import each other.
LAYERS: list[set[str]] = [
    {"errors"},
    {"types"},
    {"schedules"},
    {"storage"},
    {"imaging"},
    {"data"},
    {"models"},
    {"losses", "metrics"},
    {"training"},
    {"lightning_module"},
    {"callbacks"},
    {"inference"},
    {"planning"},
    {"demo"},
    {"cli"},
    {"project_template"},  # the template of a user's project
]


def _imports() -> Iterator[tuple[str, str]]:
    """Every import of the package within itself, wherever it stands: importer and imported module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: write the whole name"
                names = [node.module or ""]
            else:
                continue
            for imported in names:
                if imported.startswith("imagen_pl."):
                    yield name, imported.removeprefix("imagen_pl.")


def test_imports_point_downward_only() -> None:
    level = {part: i for i, parts in enumerate(LAYERS) for part in parts}
    wrong = []
    for importer, imported in _imports():
        above, below = importer.partition(".")[0], imported.partition(".")[0]
        if above not in ("__init__", below) and level[below] >= level[above]:
            wrong.append(f"{importer} imports {imported}")

    assert wrong == []


# Optional packages: trackers, hubs, formats, the web page, and those that build the shipped data.
OPTIONAL = [
    "wandb",
    "tensorboard",
    "datasets",
    "webdataset",
    "pyarrow",
    "gradio",
    "resvg_py",
    "vtracer",
    "pycocoevalcap",
    "diffusers",
]


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


# A finder that stands first and refuses, as if the package were not installed.
BLOCK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
"""


def test_the_core_needs_no_tracker_no_hub_and_no_web() -> None:
    code = BLOCK.format(blocked=OPTIONAL) + (
        "import imagen_pl.lightning_module, imagen_pl.cli.fit, imagen_pl.data.datamodule\n"
        f"print(sorted(set({OPTIONAL!r}) & set(sys.modules)))"
    )

    done = _python(code)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")


def test_optional_packages_are_imported_only_where_used() -> None:
    """Not even behind a `try`: where they are installed, they would be loaded for nothing."""
    early = []
    for path in sorted(PACKAGE.rglob("*.py")):
        nodes: list[ast.AST] = list(ast.parse(path.read_text()).body)
        while nodes:
            node = nodes.pop()
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            early += [f"{path.name}: {name}" for name in names if name.partition(".")[0] in OPTIONAL]
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            if isinstance(node, ast.If | ast.Try) and not typing_only:
                nodes += [child for child in ast.walk(node) if child is not node]

    assert early == []


def test_package_and_help_do_not_import_torch() -> None:
    done = _python("import sys, imagen_pl, imagen_pl.cli.main\nprint('torch' in sys.modules)")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


def test_networks_and_losses_need_torch_and_jaxtyping_alone() -> None:
    """They can be taken into another project without Lightning."""
    code = BLOCK.format(
        blocked=["lightning", "transformers", "timm", "torchmetrics", "jsonargparse", "PIL"]
    ) + (
        "import imagen_pl.models.generators.style, imagen_pl.models.discriminators.multiscale\n"
        "import imagen_pl.training.ema, imagen_pl.losses.clip_guidance\n"
        "import imagen_pl.losses.adversarial, imagen_pl.losses.gradient_penalties\n"
        "import imagen_pl.losses.text_matching\n"
        "import imagen_pl.losses.self_supervised, imagen_pl.losses.reconstruction\n"
        "import imagen_pl.losses.colorization, imagen_pl.losses.instance_discrimination\n"
        "import imagen_pl.losses.image_matching\n"
        "import imagen_pl.models.discriminators.projected, imagen_pl.models.discriminators.joint\n"
        "import imagen_pl.losses.captioning\n"
        "import imagen_pl.schedules, imagen_pl.models.augment\n"
    )

    done = _python(code)

    assert done.returncode == 0, done.stderr
