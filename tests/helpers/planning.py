"""Data sets of each kind, and a machine whose speed is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imagen_pl.planning import rules
from imagen_pl.planning.data_profile import DataProfile
from imagen_pl.planning.planner import Measure, Plan, Speed
from tests.helpers.image_files import encoded, noise, write_tar


def machine(images_per_second: float, base: int = 1024, resolution: int = 32) -> Measure:
    """Has the given speed with one size of networks, and with others in proportion to their cost."""

    def measure(plan: Plan) -> Speed:
        work = images_per_second * rules.cost(base, resolution)
        rates = {
            stage.resolution: work / rules.cost(plan.design.base, stage.resolution) for stage in plan.stages
        }
        return Speed(rates[plan.design.resolution], rates, memory_gb=1.5)

    return measure


def folder_of(images: int, side: int = 512, **numbers: float) -> DataProfile:
    """A folder with one caption an image, unless other numbers are given."""
    usual: dict[str, Any] = {
        "captions_per_image": 1.0,
        "images_per_caption": 1.0,
        "shared": 0.0,
        "cropped": 0.0,
    }
    return DataProfile(
        path="my_photos",
        source_class="imagen_pl.data.sources.folder.FolderSource",
        source_args={"path": "my_photos"},
        images=images,
        groups=images,
        side=side,
        **{**usual, **numbers},
    )


def loss_terms(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The loss terms of a configuration."""
    model = config["model"]
    found: list[dict[str, Any]] = model["losses"]
    return found


def write_set(
    folder: Path, count: int, width: int, height: int, images_a_caption: int = 1, captions: int = 1
) -> Path:
    """Noise with captions in a .txt beside each image."""
    folder.mkdir(parents=True)
    for i in range(count):
        noise(width, height, seed=i).save(folder / f"{i:04}.png")
        names = [f"thing {i // images_a_caption}, view {k}" for k in range(captions)]
        (folder / f"{i:04}.txt").write_text("\n".join(names))
    return folder


def write_shards(folder: Path, shards: int, images: int, side: int) -> Path:
    """WebDataset shards of `images` images each, captions all different."""
    for shard in range(shards):
        files: dict[str, bytes] = {}
        for i in range(images):
            files[f"{i:04}.png"] = encoded(noise(side, side, seed=i))
            files[f"{i:04}.txt"] = f"thing {shard}-{i}".encode()
        write_tar(folder / f"{shard:04}.tar", files)
    return folder
