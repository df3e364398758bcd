"""What comes back from a visit: the report, curves, and the model in parts, which `join` puts together."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from benchmarks.ablation import read_metrics
from benchmarks.gpu_visit.training import child
from imagen_pl.errors import UserError
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.storage.model_paths import DESCRIPTION, DISCRIMINATOR_WEIGHTS

PART_BYTES, LARGEST_BYTES, MOST_PARTS = 15 * 2**20, 16 * 2**20, 3
EXPORT_S = 180  # at most


class Report:
    """report.json, which is complete on the disk after each entry."""

    def __init__(self, file: Path) -> None:
        self.file, self.entries = file, dict[str, Any]()

    def add(self, **entries: Any) -> None:
        self.entries |= entries
        with atomic_write(self.file) as file:
            file.write((json.dumps(self.entries, indent=1) + "\n").encode())
        print(json.dumps(entries), flush=True)


def draw_curves(metrics: Path, out: Path) -> None:
    """Losses and images/s over the images seen."""
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    figure = Figure(figsize=(8, 7), layout="constrained")
    losses, speed = figure.subplots(2, sharex=True)
    for axes, name in ((losses, "d_loss"), (losses, "g_loss"), (speed, "images_per_second")):
        pairs = [(row["images_seen"], row[f"train/{name}"]) for row in rows if f"train/{name}" in row]
        axes.plot(*zip(*pairs, strict=True) if pairs else ([], []), label=name, linewidth=1)
    losses.set(ylabel="loss")
    losses.legend()
    speed.set(xlabel="images seen", ylabel="images/s", ylim=(0, None))
    figure.savefig(out, dpi=100)


def write_model(run: Path, tree: Path, work: Path, out: Path) -> dict[str, Any]:
    """Export the run's model in float16, in parts; without the discriminator if they are too many.

    Returns:
        The hash (SHA-256) of each part by its name, whether the discriminator is among them, or the reason
        why there is no model.
    """
    model, log = work / "model", work / "export.log"
    words = ["export", str(run), "--to=safetensors", "--half", "--with-discriminator", f"--out={model}"]
    if code := child(words, tree, log, EXPORT_S):
        return {"failed": f"imagen-pl export ended with {code}: {log.read_text()[-1500:]}"}
    parts = split(model)
    with_discriminator = len(parts) <= MOST_PARTS
    if not with_discriminator:
        (model / DISCRIMINATOR_WEIGHTS).unlink()
        description = json.loads((model / DESCRIPTION).read_text())
        del description["discriminator"]
        (model / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        parts = split(model)
    if len(parts) > MOST_PARTS:
        return {"failed": f"{len(parts)} parts of 15 MiB are more than {MOST_PARTS}"}
    hashes = {f"model.tar.{i:02}": hashlib.sha256(part).hexdigest() for i, part in enumerate(parts)}
    for name, part in zip(hashes, parts, strict=True):
        (out / name).write_bytes(part)
    return {"parts": hashes, "with_discriminator": with_discriminator}


def split(folder: Path) -> list[bytes]:
    """A tar archive of a folder's files, in parts of at most 15 MiB."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    content = archive.getvalue()
    return [content[i : i + PART_BYTES] for i in range(0, len(content), PART_BYTES)]


def join(results: Path, out: Path) -> None:
    """Make a release folder of the parts of a model.

    Args:
        results: folder that `run` wrote.
        out: a new or empty folder.

    Raises:
        UserError: the report lists no model, a part is missing or damaged, or the folder is not empty.
    """
    try:
        parts = json.loads((results / "report.json").read_text())["model"]["parts"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{results} has no report.json that lists the parts of a model") from None
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty: name another folder")
    content = b""
    for name, expected in parts.items():
        if not (results / name).is_file():
            raise UserError(f"{results / name} is missing: copy it again")
        part = (results / name).read_bytes()
        if hashlib.sha256(part).hexdigest() != expected:
            raise UserError(f"{results / name} is damaged: copy it again")
        content += part
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.extractall(out, filter="data")


def keep(source: Path | None, out: Path) -> str | None:
    """Copy a file to the results; the reason if it cannot be kept."""
    if source is None or not source.is_file():
        return "there is none"
    if source.stat().st_size > LARGEST_BYTES:
        return f"{source.stat().st_size / 2**20:.1f} MiB are too many"
    shutil.copyfile(source, out)
    return None
