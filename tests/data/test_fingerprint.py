"""What names the data that a model is from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.sources.folder import FolderSource
from imagen_pl.data.sources.webdataset import WebDatasetSource
from tests.helpers.image_files import encoded, noise, write_photos, write_tar


def version(path: Path, **settings: float) -> dict[str, object]:
    return CaptionedImages(FolderSource(str(path)), resolution=16, val_fraction=0.25, **settings).version()  # type: ignore[arg-type]


def test_fingerprint_does_not_depend_on_the_location(tmp_path: Path) -> None:
    first = write_photos(tmp_path / "a/photos", 12, 16)
    moved = shutil.copytree(first, tmp_path / "b/photos")

    known = version(first)

    assert version(moved, batch_size=8, seed=5) == known
    assert known["name"] == "photos"
    assert known["source"] == "FolderSource"
    counts = known["train_images"], known["validation_images"]
    assert all(isinstance(count, int) and count > 0 for count in counts)
    assert sum(counts) == 12  # type: ignore[arg-type]
    assert str(tmp_path) not in repr(known)


def test_fingerprint_changes_with_a_caption_an_image_and_a_file(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", 12, 16)
    digests = {version(folder)["digest"]}
    some = sorted(folder.glob("*.txt"))[0]
    some.write_text("something else")
    digests.add(version(folder)["digest"])
    Image.new("RGB", (16, 16), "white").save(some.with_suffix(".png"))
    digests.add(version(folder)["digest"])
    some.unlink()
    digests.add(version(folder)["digest"])

    assert len(digests) == 4


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


def test_fingerprint_of_a_stream_is_that_of_its_shards(tmp_path: Path) -> None:
    for shard in range(3):
        image = encoded(noise(16, 16, seed=shard), "JPEG")
        write_tar(tmp_path / f"{shard:03}.tar", {"0.jpg": image, "0.txt": b"noise"})
    found = CaptionedImages(WebDatasetSource(str(tmp_path)), resolution=16).version()

    assert (found["train_images"], found["train_shards"], found["validation_images"]) == (None, 2, 1)
    (tmp_path / "001.tar").rename(tmp_path / "001b.tar")
    renamed = CaptionedImages(WebDatasetSource(str(tmp_path)), resolution=16).version()
    assert renamed["digest"] != found["digest"]
