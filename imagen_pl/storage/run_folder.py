"""A run's folder: its files, its checkpoints, and how to keep a new run from overwriting it.

```
runs/NAME/
  config.yaml     the complete configuration
  run.json        id, git commit, versions, command lines
  metrics.csv     every logged value by images seen
  checkpoints/    last.ckpt, best.ckpt
  samples/        000123kimg.png
  averages/       snapshots of PowerAverages, if the run has it
  .lock           locked while a process trains the run
```
"""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path
from typing import Any, Literal

from imagen_pl.errors import UserError

Existing = Literal["error", "move", "resume"]


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.metrics = self.path / "metrics.csv"
        self.record = self.path / "run.json"

    @property
    def name(self) -> str:
        return self.path.name

    def has_results(self) -> bool:
        """Whether the folder has results: a checkpoint, a sample image or a logged value.

        A run that failed before its first batch leaves only its configuration and may be started again.
        """
        kept = (self.checkpoints.glob("*.ckpt"), self.samples.glob("*.png"))
        return self.metrics.exists() or any(True for files in kept for _ in files)

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint; None if there is none."""
        files = [path for path in self.checkpoints.glob("*.ckpt") if path.is_file()]
        # On a tie `last` is taken, for example after a copy that did not keep the times.
        return max(files, key=lambda path: (path.stat().st_mtime_ns, path.stem == "last"), default=None)

    def checkpoint_to_load(self) -> Path | None:
        """What `load()` takes: the best checkpoint if it has the newest one's resolution, else the newest.

        None if there is none.
        """
        newest, best = self.newest_checkpoint(), self.checkpoints / "best.ckpt"
        if newest is None or newest == best or not best.is_file():
            return newest
        # Imported here, since it imports torch.
        from imagen_pl.storage.checkpoint_io import read_checkpoint

        grown = [read_checkpoint(path, mmap=True).get("growth_resolution") for path in (best, newest)]
        return best if grown[0] == grown[1] else newest

    def checkpoint(self, which: str) -> Path:
        """The file that `--ckpt_path` means: "last", "best", or a path.

        Raises:
            UserError: there is no such checkpoint.
        """
        if which == "last":
            newest = self.newest_checkpoint()
            if newest is None:
                raise UserError(
                    f"{self.checkpoints} contains no checkpoint to resume from: leave out --ckpt_path"
                )
            return newest
        if which == "best":
            path = self.checkpoints / "best.ckpt"
            if not path.is_file():
                raise UserError(f"{path} does not exist: this run has not been validated yet; use last")
            return path
        path = Path(which)
        if path.is_dir():
            return RunFolder(path).checkpoint("last")
        if not path.is_file():
            raise UserError(f"checkpoint {path}: there is no such file")
        return path

    def check_free(self) -> None:
        """Raise UserError, with the options to continue, if a new run would overwrite another."""
        if not self.has_results():
            return
        raise UserError(
            f"{self.path} already contains a run: add --ckpt_path last to resume it, --name OTHER to use "
            "another folder, or --existing move to rename this folder and start a new run"
        )

    def move_away(self) -> Path | None:
        """Rename the folder, appending the time of its last change; nothing is deleted.

        Returns:
            the new path; None if there was no folder.
        """
        if not self.path.exists():
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self._last_change()))
        target = self.path.with_name(f"{self.path.name}-{stamp}")
        number = 2
        while target.exists():
            target = self.path.with_name(f"{self.path.name}-{stamp}-{number}")
            number += 1
        self.path.rename(target)
        return target

    def _last_change(self) -> float:
        return max(path.stat().st_mtime for path in [self.path, *self.path.glob("*")])

    def remove_part_files(self) -> None:
        """Delete partly written files of a killed process. Only call it while holding the run's lock."""
        for path in self.path.rglob(".*.part"):
            path.unlink(missing_ok=True)

    def read_record(self) -> dict[str, Any]:
        try:
            record = json.loads(self.record.read_text())
        except (OSError, json.JSONDecodeError):
            return {}
        return record if isinstance(record, dict) else {}

    def resume_command(self) -> str:
        return f"imagen-pl fit --config {shlex.quote(str(self.config))} --ckpt_path last"


def sweep_trial() -> str | None:
    """The run id that a W&B sweep agent gave to this trial; None outside of a sweep."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def is_main_process() -> bool:
    """Whether this is the main process, by the launcher's environment variables.

    It works before a process group exists, with Lightning's launcher, torchrun, SLURM and MPI.
    """
    if int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")) or 0) > 0:
        return False
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if name in os.environ:
            return int(os.environ[name]) == 0
    return True
