"""Imports point downward only, and the core trains without what only some people install."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import imagen_pl

PACKAGE = Path(imagen_pl.__file__).parent

# What each part may import of the package, itself aside. A part is a package's folder or a file beside
# them; the most precise name counts. Nobody but the commands at the top imports what stands above it.
LEAVES = {"errors"}
ALLOWED: dict[str, set[str]] = {
    "__init__": {"inference"},
    "errors": set(),
    "types": set(),
    "layers": set(),
    "latents": set(),
    "pictures": set(),
    "schedules": {"types"},
    "files": LEAVES,
    "prompts": LEAVES,
    "runs": LEAVES,
    "arguments": LEAVES | {"verb_help"},
    "checkpoints": LEAVES | {"files"},
    "pretrained": LEAVES,
    "backbones": LEAVES | {"pretrained"},
    "dual_encoders": LEAVES | {"backbones", "pretrained"},
    "generators": {"layers", "text.adapter", "text.prior", "types"},
    "discriminators": LEAVES | {"backbones", "layers", "text.adapter", "types"},
    "losses": LEAVES
    | {"backbones", "data.augment", "discriminators.base", "dual_encoders", "layers", "schedules", "types"}
    | {"generators.base", "text.captioner", "text.captioner_weights", "text.kernel_ridge"},
    "text": LEAVES | {"backbones", "files", "pretrained", "types"},
    "text.adapter": {"layers", "types"},
    "text.prior": {"backbones", "text.kernel_ridge"},
    "trained": LEAVES | {"checkpoints", "generators.base", "pretrained", "runs"},
    "app": LEAVES | {"describing", "films", "inference", "interpolation", "pictures", "refining"},
    "run_report": LEAVES | {"files", "runs"},
    "model_card": LEAVES
    | {"evaluation_report", "metrics.distances", "metrics.evaluation", "metrics.extractors"},
    "publishing": LEAVES | {"inference", "model_card", "pictures", "trained"},
    "data": LEAVES | {"files", "schedules", "types", "pictures"},
    "data.verbs": LEAVES | {"caption_folder", "data", "verb_help"},
    "data.augment": set(),
    "metrics": LEAVES | {"backbones", "dual_encoders", "files", "pretrained", "types"},
    "validation": {"data.datamodule", "data.looking", "metrics", "types"},
    "ema": {"generators.base"},
    "reporting": set(),
    "muon": set(),
    "solving": LEAVES | {"data.datamodule", "data.looking", "text.encoder", "text.kernel_ridge"},
    "optimization": LEAVES | {"discriminators.base", "generators.base", "reporting", "schedules", "types"},
    "system": LEAVES
    | {
        "backbones",
        "data.augment",
        "data.datamodule",
        "discriminators.base",
        "ema",
        "generators.base",
        "latents",
        "layers.resampling",
        "losses",
        "metrics.base",
        "optimization",
        "pictures",
        "schedules",
        "solving",
        "text",
        "trained",
        "types",
        "validation",
    },
    "callbacks": LEAVES | {"checkpoints", "files", "pictures", "runs", "schedules", "types"},
    "inference": LEAVES
    | {"", "checkpoints", "files", "generators.base", "latents", "pictures", "refining", "text", "trained"}
    | {"types"},
    "refining": LEAVES | {"generators", "text.prior", "types"},
    "matte": set(),
    "sampling": LEAVES | {"", "inference", "matte", "pictures", "prompts", "refining"},
    "contact_pdf": LEAVES | {"pictures"},
    "contact_sheet": LEAVES | {"contact_pdf", "files", "inference", "pictures", "prompts", "sampling"},
    "variants": LEAVES | {"data.emoji", "inference", "pictures", "sampling"},
    "films": LEAVES | {"files", "pictures"},
    "interpolation": LEAVES | {"inference", "latents", "refining", "types"},
    "exporting": LEAVES | {"files", "inference", "latents", "text", "types"},
    "editing": LEAVES | {"films", "inference", "interpolation", "pictures", "sampling"},
    "evaluation_report": {"metrics.distances", "metrics.evaluation", "metrics.retrieval"},
    "evaluating": LEAVES
    | {
        "",
        "arguments",
        "data",
        "dual_encoders",
        "evaluation_report",
        "files",
        "inference",
        "metrics",
        "pictures",
        "sampling",
    },
    "fitting": LEAVES | {"arguments", "callbacks", "checkpoints", "data", "refining", "runs", "system"},
    "captioner_training": LEAVES | {"data", "files", "latents", "schedules", "text", "types"},
    "captioner_fitting": LEAVES
    | {"", "arguments", "callbacks", "captioner_training", "checkpoints", "data", "runs", "text"},
    "describing": LEAVES
    | {"trained"}
    | {
        "arguments",
        "captioner_training",
        "checkpoints",
        "data",
        "discriminators.base",
        "runs",
        "text",
        "types",
    },
    "caption_folder": LEAVES | {"data", "describing", "files"},
    "verb_help": set(),
    "parsers": {"verb_help"},
    "cli": LEAVES
    | {
        "",
        "parsers",
        "verb_help",
        "app",
        "callbacks",
        "captioner_fitting",
        "contact_sheet",
        "data",
        "data.verbs",
        "describing",
        "editing",
        "evaluating",
        "exporting",
        "fitting",
        "publishing",
        "run_report",
        "runs",
        "sampling",
        "variants",
    },
}
# These watch the system at work and are handed it, so they know its type; loading them must not load it.
KNOW_THE_SYSTEM = {"callbacks", "reporting"}


class Import(NamedTuple):
    importer: str
    imported: str
    at_load: bool


def _imports() -> Iterator[Import]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: write the whole name"
                names = [node.module or ""]
                if node.module == "imagen_pl":  # `from imagen_pl import inference` names a module
                    modules = [a.name for a in node.names if (PACKAGE / f"{a.name}.py").exists()]
                    names = [f"imagen_pl.{module}" for module in modules] or names
            for imported in names:
                if imported.partition(".")[0] == "imagen_pl":
                    yield Import(name, imported.removeprefix("imagen_pl").lstrip("."), node in tree.body)


def _covers(part: str, module: str) -> bool:
    return module == part or module.startswith(f"{part}.")


def _part(module: str) -> str:
    """The most precise part that a module belongs to."""
    return max((part for part in ALLOWED if _covers(part, module)), key=len, default="")


def test_every_module_belongs_to_a_part() -> None:
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}

    assert {module for module in modules if not _part(module)} == set()
    assert {part for part in ALLOWED if not any(_covers(part, module) for module in modules)} == set()


def test_imports_point_downward_only() -> None:
    wrong = []
    for one in _imports():
        part = _part(one.importer)
        allowed = any(_covers(name, one.imported) for name in ALLOWED[part])
        inside = _covers(part, one.imported) or _covers(part.partition(".")[0], one.imported)
        known = part in KNOW_THE_SYSTEM and one.imported == "system" and not one.at_load
        if not (allowed or known or (inside and part != "data.augment")):
            wrong.append(f"{one.importer} imports {one.imported or 'imagen_pl'}")

    assert wrong == []


def test_the_parts_stand_in_one_order() -> None:
    """No two parts allow each other, however long the way round."""

    def below(part: str, seen: frozenset[str]) -> None:
        assert part not in seen, f"{part} stands below itself"
        for name in ALLOWED[part] - {""}:
            below(_part(name), seen | {part})

    for part in ALLOWED:
        below(part, frozenset())


# What only some people need: trackers, hubs, formats, the web page, and what builds the shipped data.
OPTIONAL = [
    "wandb",
    "tensorboard",
    "datasets",
    "webdataset",
    "pyarrow",
    "gradio",
    "resvg_py",
    "pycocoevalcap",
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
        "import imagen_pl.system, imagen_pl.fitting, imagen_pl.data.datamodule\n"
        f"print(sorted(set({OPTIONAL!r}) & set(sys.modules)))"
    )

    done = _python(code)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")


def test_no_module_asks_for_them_before_they_are_used() -> None:
    """Not even behind a `try`: where they are installed, they would be loaded for nothing."""
    early = []
    for path in sorted(PACKAGE.rglob("*.py")):
        nodes = list(ast.parse(path.read_text()).body)
        while nodes:
            node = nodes.pop()
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            early += [f"{path.name}: {name}" for name in names if name.partition(".")[0] in OPTIONAL]
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            if isinstance(node, ast.If | ast.Try) and not typing_only:
                nodes += [child for child in ast.walk(node) if child is not node]

    assert early == []


def test_the_package_and_its_help_do_not_wait_for_torch() -> None:
    done = _python("import sys, imagen_pl, imagen_pl.cli\nprint('torch' in sys.modules)")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


def test_networks_and_losses_need_torch_and_jaxtyping_alone() -> None:
    """They can be taken into another project without Lightning."""
    code = BLOCK.format(
        blocked=["lightning", "transformers", "timm", "torchmetrics", "jsonargparse", "PIL"]
    ) + (
        "import imagen_pl.generators.style, imagen_pl.discriminators.multiscale, imagen_pl.ema\n"
        "import imagen_pl.losses.adversarial, imagen_pl.losses.penalties, imagen_pl.losses.matching\n"
        "import imagen_pl.losses.self_supervised, imagen_pl.losses.reconstruction\n"
        "import imagen_pl.losses.colour, imagen_pl.losses.instance, imagen_pl.losses.guidance\n"
        "import imagen_pl.losses.paired\n"
        "import imagen_pl.discriminators.projected, imagen_pl.discriminators.joint\n"
        "import imagen_pl.losses.captioning\n"
        "import imagen_pl.schedules, imagen_pl.data.augment\n"
    )

    done = _python(code)

    assert done.returncode == 0, done.stderr
