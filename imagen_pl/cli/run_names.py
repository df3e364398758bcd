"""The folder that a training writes to, from its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from imagen_pl.errors import UserError
from imagen_pl.storage.run_folder import RunFolder, sweep_trial


def folder_of_run(settings: Namespace, words: Sequence[str], default: str) -> RunFolder:
    """The run's folder; also sets `name` and `runs_dir` of the settings.

    The configuration in a run's folder refers to that run, even after the folder was moved, unless --name is
    given. For other configurations the name is their `name`, or the name of the file.

    Args:
        settings: parsed settings, with `name`, `runs_dir` and `config`.
        words: the command line.
        default: name of a run without a configuration file.

    Raises:
        UserError: the name is not a plain folder name.
    """
    files = [Path(str(file)) for file in settings.get("config") or []]
    given = {word.partition("=")[0] for word in words}
    own = files[0].absolute().parent if files else None
    trial = sweep_trial()
    if own is not None and not trial and "--name" not in given and _is_of_run(files[0]):
        settings.name = own.name
        if "--runs_dir" not in given:
            written = files[0].parent.parent
            settings.runs_dir = str(written if files[0].parent.name else own.parent)
    elif settings.name is None:
        settings.name = files[0].stem if files else default
        if trial:  # trials share one command, but need folders of their own
            settings.name += f"-{trial}"
    if not settings.name or Path(settings.name).name != settings.name:
        raise UserError(f"--name {settings.name!r} must be a plain name; --runs_dir says where it lies")
    return RunFolder(Path(settings.runs_dir) / settings.name)


def _is_of_run(file: Path) -> bool:
    """Whether the file is the configuration of a run, or of an earlier start of it."""
    run = RunFolder(file.parent)
    return file.name.startswith("config") and (run.record.is_file() or run.checkpoints.is_dir())
