"""ImageCaptionPairs: which images and captions they are, and what their fingerprint changes with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.sources.base import Row
from imagen_pl.data.sources.folder import FolderSource
from imagen_pl.data.sources.webdataset import WebDatasetSource
from tests.helpers.image_files import Solid, encoded, module, noise, write_photos, write_tar
from tests.helpers.training import Speckled, tiny_data


def test_one_pair_per_group_with_its_first_caption() -> None:
    class Grouped(Speckled):
        def load(self, problems: Any) -> dict[str, list[Row]]:
            splits = super().load(problems)
            return {
                name: [
                    Row(r.name, (f"first {i}", "other"), r.place, f"g{i // 3}") for i, r in enumerate(rows)
                ]
                for name, rows in splits.items()
            }

    data = tiny_data()
    data.source = Grouped(12, side=32)
    (found,) = data.pairs.batches(24, largest=16)
    assert found.captions == ["first 0", "first 3", "first 6", "first 9"]
    assert found.images.shape == (4, 3, 16, 16)


def test_pairs_of_a_stream_are_different_images(tmp_path: Path) -> None:
    for shard in range(3):
        files: dict[str, bytes] = {}
        for i in range(shard, 100 * shard, 10):
            files |= {f"{i}.png": encoded(noise(32, 32, seed=i)), f"{i}.txt": f"image {shard} {i}".encode()}
        files |= {
            "small.png": encoded(noise(4, 4)),
            "small.txt": b"small",
            "broken.png": b"no",
            "broken.txt": b"x",
        }
        write_tar(tmp_path / f"train-{shard}.tar", files)
    write_tar(tmp_path / "validation-0.tar", {"v.png": encoded(noise()), "v.txt": b"held out"})
    data = CaptionedImages(WebDatasetSource(str(tmp_path)), resolution=32)
    whole = [caption for batch in data.pairs.batches(1000, largest=16) for caption in batch.captions]
    assert len(whole) == len(set(whole)) == 30
    assert not {"small", "x", "held out"} & set(whole)
    some = [caption for batch in data.pairs.batches(12, largest=16) for caption in batch.captions]
    assert some == whole[:12]


def test_images_that_a_regression_is_fitted_to_are_not_decoded_again() -> None:
    opened: list[str] = []
    source = Solid(10)
    original = source.image

    def image(row: Row) -> bytes:
        opened.append(row.name)
        return original(row)

    source.image = image  # type: ignore[method-assign]
    for resolution, workers, expected in ((8, 0, 10), (4, 0, 20), (8, 1, 10)):
        data = module(source, val_fraction=0, num_workers=workers)
        data.captions()
        opened.clear()  # of the check of headers
        images = torch.cat([batch.images for batch in data.pairs.batches(10, largest=resolution)])
        assert images.shape == (10, 3, resolution, resolution)
        list(data.train_dataloader())  # with a worker, it opens them there
        assert len(opened) == expected


def pairs_fingerprint(path: Path, number: int = 6, **settings: object) -> str:
    source = FolderSource(str(path))
    data = CaptionedImages(source, resolution=16, val_fraction=0.25, **settings)  # type: ignore[arg-type]
    return data.pairs.fingerprint(number, largest=32)


def test_pairs_are_the_same_whatever_does_not_change_them(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", 12, 16)
    known = pairs_fingerprint(folder)
    assert len(known) == 32
    same: dict[str, Any] = {"batch_size": 8, "seed": 5, "horizontal_flip": True, "caption_dropout": 0.1}
    assert pairs_fingerprint(folder, **same) == known
    moved = shutil.copytree(folder, tmp_path / "elsewhere/photos")  # with the files' times
    assert pairs_fingerprint(moved) == known


def test_pairs_change_with_every_image_and_caption(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", 12, 16)
    data = CaptionedImages(FolderSource(str(folder)), resolution=16, val_fraction=0.25)
    images = [folder / row.name for row in data._rows.train]
    found = [pairs_fingerprint(folder, len(images))]
    for path in images:
        path.write_bytes(path.read_bytes() + b" ")
        found.append(pairs_fingerprint(folder, len(images)))
    for path in images:
        path.with_suffix(".txt").write_text(f"another {path.name}")
        found.append(pairs_fingerprint(folder, len(images)))
    assert len(set(found)) == 1 + 2 * len(images)
    assert pairs_fingerprint(folder, 3) not in found
    assert pairs_fingerprint(folder, len(images), background="black") not in found


def test_pairs_of_a_stream_change_with_its_shards(tmp_path: Path) -> None:
    def write(seed: int) -> str:
        for shard in range(3):
            image = encoded(noise(16, 16, seed=seed + shard))
            write_tar(tmp_path / f"{shard:03}.tar", {"0.png": image, "0.txt": b"noise"})
        return CaptionedImages(WebDatasetSource(str(tmp_path)), resolution=16).pairs.fingerprint(6, 32)

    assert write(0) != write(10)
