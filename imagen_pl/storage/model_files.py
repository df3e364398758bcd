"""What a trained generator learnt: its average's weights, read from a run, a checkpoint or a release."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.storage.checkpoint_io import read_checkpoint
from imagen_pl.storage.hub import hub_has_address
from imagen_pl.storage.run_folder import RunFolder

RELEASE_FORMAT = 1
# Models that come with the package, a folder each.
RELEASED = Path(__file__).parents[1] / "released"
# A release may hold a captioner, in this folder.
CAPTIONER = "captioner"
# A model's name on the Hugging Face hub, as "owner/name".
HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"
_EMA = "ema.generator."


def model_file(path: str | Path) -> Path:
    """The file with the weights: a .ckpt, or the model.safetensors of a release.

    Of a run, the best checkpoint is taken where it has the resolution of the newest, else the newest.

    Args:
        path: a run's folder, a .ckpt file, a release's folder, the name of a model that ships, or a release's
            name on the Hugging Face hub.

    Raises:
        UserError: nothing is there.
    """
    name, path = str(path), released(path)
    if path.is_file():
        return path
    if (path / "config.json").is_file():
        file = path / "model.safetensors"
        if not file.is_file():
            raise UserError(f"release {path}: model.safetensors is missing")
        return file
    if path.is_dir():
        return _of_run(path)
    if re.fullmatch(HUB_ID, name) and not path.parent.exists():
        return _of_hub(name)
    ship = ", ".join(sorted(file.parent.name for file in RELEASED.glob("*/config.json")))
    advice = f"; this package brings {ship}" if ship and path.parent == Path() else ""
    raise UserError(f"model {path}: there is no such run, checkpoint or release{advice}")


def released(path: str | Path) -> Path:
    """The folder of a model that comes with the package, if that is what is named; else the path as it is."""
    path = Path(path)
    folder = RELEASED / path.name
    ships = path.parent == Path() and not path.exists() and (folder / "config.json").is_file()
    return folder if ships else path


def _of_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    offline = not hub_has_address()
    try:
        files = ["config.json", "model.safetensors"]
        folder = snapshot_download(name, allow_patterns=files, local_files_only=offline)
    except Exception as error:  # of many kinds, by what is wrong
        raise UserError(
            f"model {name}: there is no such run, checkpoint or release here, and the Hugging Face hub "
            "does not give it: check the name and the network"
        ) from error
    if not (Path(folder) / "model.safetensors").is_file():
        raise UserError(f"model {name}: what the hub has of this name is no release of imagen_pl")
    return Path(folder) / "model.safetensors"


def _of_run(folder: Path) -> Path:
    run = RunFolder(folder)
    newest = run.newest_checkpoint()
    if newest is None:
        raise UserError(
            f"model {folder}: neither a run with checkpoints/*.ckpt nor a release with config.json and "
            "model.safetensors"
        )
    best = run.checkpoints / "best.ckpt"
    if newest == best or not best.is_file():
        return newest
    grown = [read_checkpoint(p, mmap=True)["growth_resolution"] for p in (best, newest)]
    return best if grown[0] == grown[1] else newest


def average_of(checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The generator's average in a checkpoint, by the generator's own names."""
    held = checkpoint["state_dict"]
    weights = {name.removeprefix(_EMA): held[name] for name in held if name.startswith(_EMA)}
    if not weights:
        raise UserError(f"checkpoint {path} holds no moving average of a generator ({_EMA}*)")
    return weights


def read_release(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A release's description and weights."""
    try:
        description: dict[str, Any] = json.loads((folder / "config.json").read_text())
        if description["format"] > RELEASE_FORMAT:
            raise UserError(f"release {folder} was written by a later imagen_pl ({description['imagen_pl']})")
        with safe_open(folder / "model.safetensors", framework="pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (json.JSONDecodeError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"release {folder} cannot be read: {type(error).__name__}: {error}") from error
    return description, weights
