"""Finds the file of a model: in a run, a checkpoint, a release, or on the hub. It does not import torch."""

from __future__ import annotations

import difflib
import logging
import re
from functools import cache
from pathlib import Path

from imagen_pl.errors import UserError
from imagen_pl.storage.hub import hub_has_address
from imagen_pl.storage.run_folder import RunFolder

log = logging.getLogger(__name__)

# Models that ship with the package, one folder each.
RELEASED = Path(__file__).parents[1] / "released"
# A release may contain a captioner, in this folder.
CAPTIONER = "captioner"
CAPTIONER_WEIGHTS = "captioner.safetensors"
# Description of a release or a captioner.
DESCRIPTION = "config.json"
WEIGHTS = "model.safetensors"
# A release may contain the discriminator, for fine-tuning.
DISCRIMINATOR_WEIGHTS = "discriminator.safetensors"
# A model's name on the Hugging Face hub, as "owner/name".
HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"


def model_file(path: str | Path, with_discriminator: bool = False, revision: str | None = None) -> Path:
    """The file with the weights: a .ckpt, or the model.safetensors of a release.

    For a run, `RunFolder.checkpoint_to_load` selects the checkpoint.

    Args:
        path: a run's folder, a .ckpt file, a release's folder, the name of a model that ships, or a release's
            name on the Hugging Face hub.
        with_discriminator: download the discriminator too, if the release on the hub has one.
        revision: branch, tag or commit on the hub; None takes the newest.

    Raises:
        UserError: there is no such model (similar names are suggested), or a revision is given for a local
            path.
    """
    name, path = str(path), released(path)
    if revision is not None and path.exists():
        raise UserError(f"revision {revision} applies to models on the hub, but {path} is a local path")
    if path.is_file():
        return path
    if (path / DESCRIPTION).is_file():
        file = path / WEIGHTS
        if not file.is_file():
            raise UserError(f"release {path}: {WEIGHTS} is missing")
        return file
    if path.is_dir():
        checkpoint = RunFolder(path).checkpoint_to_load()
        if checkpoint is None:
            raise UserError(
                f"model {path}: neither a run with checkpoints/*.ckpt nor a release with {DESCRIPTION} and "
                f"{WEIGHTS}"
            )
        return checkpoint
    if re.fullmatch(HUB_ID, name) and not path.parent.exists():
        return _hub_file(name, with_discriminator, revision)
    raise UserError(f"there is no run, checkpoint or release {path}{_suggestion(path)}")


def captioner_file(path: str | Path) -> Path:
    """The file with a captioner's weights: captioner.safetensors, or what `model_file` selects.

    Args:
        path: a captioner's folder, a run's folder, a .ckpt file, the folder of a release with a captioner, or
            the name of one that ships.

    Raises:
        UserError: there is no such model; similar names are suggested.
    """
    path = released(path)
    for folder in (path / CAPTIONER, path):
        if (folder / CAPTIONER_WEIGHTS).is_file():
            return folder / CAPTIONER_WEIGHTS
    return path if path.is_file() else model_file(path)


def released(path: str | Path) -> Path:
    """The folder of the model that ships under this name; any other path is returned as it is.

    A file or folder of that name in the working directory takes precedence if it holds a model.
    """
    is_plain_name = str(path) == Path(path).name  # true for "emoji", not for "./emoji"
    path = Path(path)
    folder = RELEASED / path.name
    if not is_plain_name or not (folder / DESCRIPTION).is_file():
        return path
    if not path.exists():
        return folder
    if _contains_model(path):
        _warn_once(f"{path}: the model in ./{path} is used; the one that ships with this package is {folder}")
        return path
    _warn_once(f"{path}: the model that ships with this package is used; ./{path} here contains no model")
    return folder


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def _contains_model(path: Path) -> bool:
    if path.is_file():
        return True
    names = (WEIGHTS, CAPTIONER_WEIGHTS, f"{CAPTIONER}/{CAPTIONER_WEIGHTS}")
    return any((path / name).is_file() for name in names) or RunFolder(path).newest_checkpoint() is not None


def _suggestion(path: Path) -> str:
    """Models with a similar name, in the same folder or shipped with the package; else the shipped ones."""
    shipped = sorted(file.parent.name for file in RELEASED.glob(f"*/{DESCRIPTION}"))
    is_plain_name = path.parent == Path()
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    found = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.7)
    similar = [str(path.parent / name) for name in found if _contains_model(path.parent / name)]
    if is_plain_name:
        similar += [
            name for name in difflib.get_close_matches(path.name, shipped, cutoff=0.6) if name not in similar
        ]
    if similar:
        return f"; did you mean {' or '.join(similar)}?"
    if not shipped or not is_plain_name:
        return ""
    names = ", ".join(shipped[:-1]) + " and " * (len(shipped) > 1) + shipped[-1]
    return f"; {names} {'ships' if len(shipped) == 1 else 'ship'} with this package"


def _hub_file(name: str, with_discriminator: bool, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    offline = not hub_has_address()
    try:
        files = [DESCRIPTION, WEIGHTS, *([DISCRIMINATOR_WEIGHTS] if with_discriminator else [])]
        folder = snapshot_download(name, revision=revision, allow_patterns=files, local_files_only=offline)
    except Exception as error:  # huggingface_hub raises many types
        raise UserError(
            f"model {name}: there is no such run, checkpoint or release here, and it cannot be downloaded "
            "from the Hugging Face hub: check the name and the network"
        ) from error
    if not (Path(folder) / WEIGHTS).is_file():
        raise UserError(f"model {name}: the hub's repository of this name is not a release of imagen_pl")
    return Path(folder) / WEIGHTS
