"""`imagen-pl new`: write a new project that uses imagen_pl as a library."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from imagen_pl.cli.options import verb_parser
from imagen_pl.errors import UserError

TEMPLATE = Path(__file__).parents[1] / "project_template"
# The template's own package has this name; it is replaced by the project's name.
PLACEHOLDER = "my_project"
# Stored without their dot: otherwise git would apply them to this repository, and package builders might
# skip them.
_DOTTED = ("gitignore", "github")


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "new",
        description="Write a small repository that uses imagen_pl as a library: a configuration, a package "
        "with a data source and a loss, their tests, a notebook and a CI file. It trains without changes.",
        notes="docs/extending.md explains how to write parts of a model.",
    )
    parser.add_argument(
        "name", metavar="NAME", help="name of the project and of its package, in letters, digits and _"
    )
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return new(make_parser().parse_args(words))


def new(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: the name is not a valid package name, or it is taken.
    """
    files = write_project(arguments.name, Path.cwd())
    for file in files:
        print(f"{arguments.name}/{file}")
    print(f"Train it: cd {arguments.name} && PYTHONPATH=. imagen-pl fit --config configs/discs.yaml")
    return 0


def write_project(name: str, parent: Path) -> list[str]:
    """Copy the template to a new folder; after an error, no folder is left.

    Args:
        name: of the project, its folder and its package.
        parent: the folder in which the project is created.

    Returns:
        Its files, relative to the new folder.

    Raises:
        UserError: the name is not a valid package name, or it is taken.
    """
    _check(name, parent)
    files = []
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent) as folder:
        project = Path(folder) / name
        for source in sorted(TEMPLATE.rglob("*")):
            first, *rest = source.relative_to(TEMPLATE).parts
            # Skip the caches of Python (in every installed package) and of linters.
            if source.is_dir() or first.startswith(".") or "__pycache__" in rest:
                continue
            path = "/".join([f".{first}" if first in _DOTTED else first, *rest])
            path = path.replace(PLACEHOLDER, name)
            file = project / path
            file.parent.mkdir(parents=True, exist_ok=True)
            text = re.sub(rf"\b{PLACEHOLDER}\b", name, source.read_text(encoding="utf-8"))
            file.write_text(text, encoding="utf-8")
            files.append(path)
        project.rename(parent / name)
    return files


def _check(name: str, parent: Path) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(
            f"{name!r} cannot be the name of a Python package: use letters, digits and _, and begin with a "
            "letter, as in my_project"
        )
    if (parent / name).exists():
        raise UserError(f"{name} already exists in this folder: choose another name, or move it away")
    if name in ("tests", "configs", "notebooks") or importlib.util.find_spec(name) is not None:
        raise UserError(f"{name} is the name of an existing package or folder: choose another name")
