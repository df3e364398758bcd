"""An average of any length, made after training (post-hoc EMA, EDM2, arXiv:2312.02696, section 3).

A power function average weights the generator after tau images by tau^g, g being its exponent. Its length is
the standard deviation of these weights, as a share of the images that the run has seen. A run keeps
snapshots of averages of two lengths. An average of another length is a sum of them, with those factors that
bring its weights over time nearest to the wanted ones by least squares.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.storage.atomic_files import atomic_write

FOLDER = "averages"  # in a run's folder
LENGTHS = (0.05, 0.1)
SHORTEST = 0.001
# Of the average of all images with equal weights.
LONGEST = math.sqrt(1 / 12)
_NAME = re.compile(r"(\d{10,})-(\d[\d.]*)\.safetensors")
# The least-squares fit leaves this share of the squared weights where the snapshots are too few for a length.
_POOR = 0.1


@dataclass(frozen=True, order=True)
class Snapshot:
    """A power function average at one time.

    images: images seen; after them it was taken.
    length: of the average.
    """

    images: int
    length: float

    def file(self, folder: Path) -> Path:
        return folder / f"{self.images:010d}-{self.length:g}.safetensors"


def exponent(length: float) -> float:
    """The exponent g of a length s: the root of (g + 1) / ((g + 2)^2 (g + 3)) = s^2, the weights' variance.

    Raises:
        UserError: the length is not from 0.001 to less than that of equal weights, 0.289.
    """
    if not SHORTEST <= length < LONGEST:
        raise UserError(f"the length of an average {length:g} must be from {SHORTEST} to {LONGEST:.3f}")
    roots = np.roots([1, 7, 16 - length**-2, 12 - length**-2])
    return float(roots[np.isreal(roots)].real.max())


def product(first: Snapshot, second: Snapshot) -> float:
    """The integral over the run of the product of two snapshots' weights, by 1/images."""
    a, b = exponent(first.length), exponent(second.length)
    early, late = (a, first.images), (b, second.images)
    if first.images > second.images:
        early, late = late, early
    # In this form no power of a number of images overflows.
    ratio = (early[1] / late[1]) ** (late[0] + 1)
    return (a + 1) * (b + 1) / (a + b + 1) * ratio / early[1]


def factors(snapshots: Sequence[Snapshot], wanted: Snapshot) -> tuple[np.ndarray, float]:
    """The factor of each snapshot in an average, and the share of its squared weights that they miss.

    Snapshots of a later time than the wanted one must be left out. The factors sum to 1.
    """
    matrix = np.array([[product(one, other) for other in snapshots] for one in snapshots])
    aims = np.array([product(one, wanted) for one in snapshots])
    found = np.linalg.lstsq(matrix, aims, rcond=1e-10)[0]
    found /= found.sum()
    whole = product(wanted, wanted)
    missed = found @ matrix @ found - 2 * found @ aims + whole
    return found, max(float(missed / whole), 0.0)


def snapshots_of(folder: Path) -> list[Snapshot]:
    """The snapshots that a run has written, oldest first."""
    found = []
    for file in folder.glob("*.safetensors"):
        if match := _NAME.fullmatch(file.name):
            found.append(Snapshot(int(match[1]), float(match[2])))
    return sorted(found)


def write_snapshot(folder: Path, snapshot: Snapshot, weights: Mapping[str, Tensor]) -> None:
    """In float16. Lengths far below those of the snapshots amplify its rounding errors, 0.02 some tenfold."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(snapshot.file(folder)) as file:
        file.write(safetensors.torch.save({name: w.half().contiguous().cpu() for name, w in weights.items()}))


def average(run: Path, length: float) -> tuple[dict[str, Tensor], int]:
    """The generator's parameters, averaged over a length at the last snapshot, and its images seen.

    Args:
        run: its folder.
        length: of the average, as a share of the run.

    Raises:
        UserError: the run has no snapshots, or too few for this length.
    """
    folder = run / FOLDER
    kept = snapshots_of(folder)
    if not kept:
        raise UserError(
            f"{run} has no snapshots to average: train with "
            "--trainer.callbacks+=imagen_pl.callbacks.power_averages.PowerAverages"
        )
    wanted = Snapshot(kept[-1].images, length)
    found, missed = factors(kept, wanted)
    if missed > _POOR:
        raise UserError(
            f"the {len(kept)} snapshots of {run} give no average of length {length:g}: their sum misses "
            f"{missed:.0%} of its weights. Train with a smaller PowerAverages.every_kimg, or take a length "
            f"nearer to {' and '.join(f'{each:g}' for each in sorted({s.length for s in kept}))}"
        )
    summed: dict[str, Tensor] = {}
    for factor, snapshot in zip(found.tolist(), kept, strict=True):
        for name, weights in safetensors.torch.load_file(snapshot.file(folder)).items():
            summed[name] = summed.get(name, torch.zeros(())) + factor * weights.float()
    return summed, wanted.images
