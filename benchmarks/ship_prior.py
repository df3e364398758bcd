"""Ship a kernel-ridge fit with the package, so that a first run need not look at the images.

    IMAGEN_PL_CACHE=fresh imagen-pl fit --config configs/experiment/quickstart.yaml --max_images 32 \
        --trainer.accelerator cpu
    python -m benchmarks.ship_prior fresh/kernel_ridge/*.safetensors

The first command fits the quickstart's prior and caches it; the second writes it in half precision to
imagen_pl/data/shipped/kernel_ridge/, where training finds it by its name, and deletes the one before. Needed
whenever the shipped images or the settings of the quickstart's prior change: a test says so.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import safetensors.torch
import torch

from imagen_pl.storage.atomic_files import atomic_write

SHIPPED = Path(__file__).parents[1] / "imagen_pl/data/shipped/kernel_ridge"


def ship(fit: Path, folder: Path = SHIPPED) -> Path:
    """Write a cached fit in half precision, in place of the one that was shipped before."""
    state = {name: value.to(torch.float16) for name, value in safetensors.torch.load_file(fit).items()}
    for earlier in folder.glob("*.safetensors"):
        earlier.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / fit.name
    with atomic_write(out) as file:
        file.write(safetensors.torch.save(state))
    return out


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fit", type=Path, help="the file in the cache")
    out = ship(parser.parse_args(words).fit)
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
