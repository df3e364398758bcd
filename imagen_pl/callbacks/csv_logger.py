"""metrics.csv: every logged value of a run, one row for each value of the clock `images_seen`."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from imagen_pl.storage.atomic_files import atomic_write


class MetricsCSV(Logger):
    """Logs to metrics.csv: one row for each clock value at which something was logged, `images_seen` first.

    A resumed run continues the file. If it resumes from an earlier checkpoint, the rows from that point on
    are replaced.

    Args:
        save_dir: the run's folder.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._columns: list[str] | None = None  # None until the file is read
        self._row: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            raise ValueError("metrics.csv has one row per number of images seen: pass it as step")
        if self._row and self._row["images_seen"] != step:
            self.save()
        self._row = {**self._row, **metrics, "images_seen": step}

    @rank_zero_only
    def save(self) -> None:
        if not self._row:
            return
        if self._columns is None:
            self._continue_file(self._row["images_seen"])
        assert self._columns is not None
        new = sorted(self._row.keys() - set(self._columns))
        if new:
            rows = _read(self.path)
            self._columns = [*self._columns, *new]
            _write(self.path, self._columns, rows)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(self._row)
        self._row = {}

    def _continue_file(self, images_seen: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = _read(self.path)
        self._columns = list(rows[0]) if rows else ["images_seen"]
        # On a full disk the last row may be incomplete.
        kept = [row for row in rows if row["images_seen"].isdigit() and int(row["images_seen"]) < images_seen]
        _write(self.path, self._columns, kept)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
