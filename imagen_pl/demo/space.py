"""Writes a folder that serves the page elsewhere: as a Gradio Space on the hub, or with Docker."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import imagen_pl
from imagen_pl.errors import UserError
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.inference.publishing import write_weights
from imagen_pl.storage.model_paths import HUB_ID, released

PORT = 7860  # the one that Spaces expect
MODEL, UPSAMPLER = "model", "upsampler"  # folders of the copied models

_APP = '''"""Serves the page of {title}: python app.py"""

import os
import sys
from pathlib import Path

from imagen_pl.cli.main import main

os.chdir(Path(__file__).resolve().parent)
# A Space and a container accept connections from other machines, other installations only local ones.
server_name = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1")
port = os.environ.get("GRADIO_SERVER_PORT", "{port}")
words = {words}
sys.exit(main(["demo", *words, "--server_name", server_name, "--port", port]))
'''
# The page also traces pictures as SVG.
_REQUIREMENTS = """\
# Where no package index has imagen_pl, name the repository of your clone instead:
# imagen_pl[demo,svg] @ git+https://HOST/OWNER/imagen_pl
imagen_pl[demo,svg]=={version}
"""
_DOCKERFILE = """\
# Serves the same page on any machine with Docker:
#   docker build --tag {tag} .
#   docker run --publish {port}:{port} {tag}
FROM python:{python}-slim
# git installs requirements that name a repository.
RUN apt-get update && apt-get install --yes --no-install-recommends git && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 user
WORKDIR /home/user/app
# First the packages alone, so that a changed app.py does not install them again.
COPY requirements.txt .
RUN pip install --no-cache-dir --requirement requirements.txt
COPY --chown=user:user . .
USER user
ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT={port} PYTHONUNBUFFERED=1
EXPOSE {port}
CMD ["python", "app.py"]
"""
_README = """\
# {title}

The web page of {model}, a text-to-image GAN trained with imagen_pl.

- As a Space: `hf upload OWNER/NAME . --repo-type space` in this folder.
- With Docker: the first lines of `Dockerfile` say how.
- On this machine: `pip install -r requirements.txt`, then `python app.py`.
"""
# Weights are stored outside git.
_ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def write_space(
    folder: Path,
    name: str,
    model: TextToImage,
    examples: Sequence[str] = (),
    upscaler: str | None = None,
    upscaler_model: TextToImage | None = None,
    licence: str = "mit",
) -> list[str]:
    """Write app.py, requirements.txt, README.md, Dockerfile, and the model unless it can be named.

    A model that ships with this package or is on the hub is named in app.py; another one is copied, without
    its data's path and captions unless the data source declares that they may be published.

    Args:
        folder: a new folder, or an empty one.
        name: what the user calls the model.
        model: the model.
        examples: prompts to click on; none takes the model's own.
        upscaler: what the user calls the model that enlarges pictures, or none; None takes the usual one.
        upscaler_model: that model; needed if it has to be copied.
        licence: of the Space, as the hub spells it.

    Returns:
        Names of the files, relative to the folder.

    Raises:
        UserError: the folder holds something, or the disk is full.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--export-space {folder} exists and is not an empty folder: name a new one")
    folder.mkdir(parents=True, exist_ok=True)
    words = [name]
    if not can_be_named(name):
        write_weights(model, folder / MODEL)
        words = [MODEL]
    if upscaler is not None:
        if upscaler_model is not None and not can_be_named(upscaler):
            write_weights(upscaler_model, folder / UPSAMPLER)
            # With a slash, since the name alone means the model that ships.
            upscaler = f"./{UPSAMPLER}"
        words += ["--upscaler", upscaler]
    if examples:
        words += ["--examples", *examples]
    title = Path(name).name
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    tag = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "imagen-pl"
    head = f"---\n{yaml.safe_dump(_front_matter(title, name, python, licence), sort_keys=False)}---\n\n"
    shown = name if can_be_named(name) else title  # no path of this machine
    for file, text in {
        "app.py": _APP.format(title=title, port=PORT, words=repr(words)),
        "requirements.txt": _REQUIREMENTS.format(version=imagen_pl.__version__),
        "README.md": head + _README.format(title=title, model=shown),
        "Dockerfile": _DOCKERFILE.format(python=python, port=PORT, tag=tag),
        ".gitattributes": _ATTRIBUTES,
        ".dockerignore": ".git\n__pycache__\n",
    }.items():
        (folder / file).write_text(text, encoding="utf-8")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def can_be_named(name: str) -> bool:
    """Whether another machine finds the model by this name: it ships with this package, or is on the hub."""
    if name == "none":  # of upscalers
        return True
    if released(name) != Path(name):
        return True
    return re.fullmatch(HUB_ID, name) is not None and not Path(name).parent.exists()


def _front_matter(title: str, name: str, python: str, licence: str) -> dict[str, Any]:
    """What a Space reads from its README.md."""
    head: dict[str, Any] = {
        "title": title,
        "emoji": "🎨",
        "colorFrom": "indigo",
        "colorTo": "pink",
        "sdk": "gradio",
    }
    with suppress(PackageNotFoundError):  # the Space then takes the newest one
        head["sdk_version"] = version("gradio")
    head |= {"python_version": python, "app_file": "app.py", "license": licence}
    if re.fullmatch(HUB_ID, name) and can_be_named(name):
        head["models"] = [name]
    return head
