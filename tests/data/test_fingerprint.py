"""The fingerprint of a data set."""

from __future__ import annotations

import shutil
from pathlib import Path

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


def test_fingerprint_of_a_stream_is_that_of_its_shards(tmp_path: Path) -> None:
    for shard in range(3):
        image = encoded(noise(16, 16, seed=shard), "JPEG")
        write_tar(tmp_path / f"{shard:03}.tar", {"0.jpg": image, "0.txt": b"noise"})
    found = CaptionedImages(WebDatasetSource(str(tmp_path)), resolution=16).version()

    assert (found["train_images"], found["train_shards"], found["validation_images"]) == (None, 2, 1)
    (tmp_path / "001.tar").rename(tmp_path / "001b.tar")
    renamed = CaptionedImages(WebDatasetSource(str(tmp_path)), resolution=16).version()
    assert renamed["digest"] != found["digest"]
