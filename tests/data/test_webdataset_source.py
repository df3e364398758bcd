"""WebDataset shards: split among processes and workers, shuffled, at the clock's resolution."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_pl.data.batch_samplers import BatchPlan, TrainingBatches
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.dataset import StreamImages
from imagen_pl.data.sample_processing import SampleProcessing
from imagen_pl.data.sources.webdataset import WebDatasetSource
from imagen_pl.data.stream_positions import StreamPositions
from imagen_pl.errors import UserError
from imagen_pl.schedules import Stage
from imagen_pl.types import CaptionedBatch
from tests.helpers.image_files import encoded, truncated_jpeg, write_tar


def write_shards(folder: Path, count: int, each: int = 8) -> Path:
    """Image n of the set is of level n and is called "n"."""
    for shard in range(count):
        files: dict[str, bytes] = {}
        for i in range(each):
            n = shard * each + i
            files[f"{n:05}.png"] = encoded(Image.new("RGB", (16, 16), (n, n, n)))
            files[f"{n:05}.txt"] = f"{n}".encode()
        write_tar(folder / f"{shard:03}.tar", files)
    return folder


def data_of(path: Path, **settings: object) -> CaptionedImages:
    defaults: dict[str, object] = {"resolution": 8, "batch_size": 4, "num_workers": 0, "epoch_kimg": 0.016}
    return CaptionedImages(WebDatasetSource(str(path)), **{**defaults, **settings})  # type: ignore[arg-type]


def stream(path: Path, rank: int = 0, world_size: int = 1, buffer: int = 5, clock: int = 0) -> list[str]:
    source = WebDatasetSource(str(path))
    images = StreamImages(source, source.shards()["train"], SampleProcessing(), buffer, rank, world_size)
    turns = StreamPositions("", 1, rank, world_size).turns
    plans = TrainingBatches(None, lambda: [Stage(8, 1, 4)], lambda: clock, 64, rank, world_size, turns)
    return [caption for plan in plans for caption in images[plan].captions]


def check_pairs(batch: CaptionedBatch) -> None:
    assert batch.images[:, 0, 0, 0].tolist() == [int(caption) for caption in batch.captions]


def test_pairs_numbers_and_resolutions_follow_the_clock(tmp_path: Path) -> None:
    data = data_of(write_shards(tmp_path, 4), batch_size=4)
    data.run_state.stages = [Stage(8, 0.006, 4), Stage(16, 1, 2)]
    seen = 0
    loader = data.train_dataloader()
    sizes = []
    for _ in range(2):
        for batch in loader:
            check_pairs(batch)
            assert batch.indices.tolist() == list(range(seen, seen + len(batch)))
            sizes.append((len(batch), batch.images.shape[-1]))
            seen += len(batch)
            data.run_state.images_seen = seen
    assert sizes == [(4, 8)] * 2 + [(2, 16)] * 12
    assert data.captions() is None


def test_workers_share_the_shards_and_follow_the_clock(tmp_path: Path) -> None:
    data = data_of(write_shards(tmp_path, 5), num_workers=2, batch_size=4)
    data.run_state.stages = [Stage(8, 0.02, 4), Stage(16, 1, 4)]
    seen = 0
    loader = data.train_dataloader()
    served = []
    for _ in range(4):
        for batch in loader:
            check_pairs(batch)
            assert batch.indices[0] == seen
            assert batch.images.shape[-1] == (8 if seen < 20 else 16)
            served.append(batch.captions)
            seen += len(batch)
            data.run_state.images_seen = seen
    # The streams continue from epoch to epoch, and in a pass no worker reads another's shards.
    of_worker = [{int(c) // 8 for batch in served[w:8:2] for c in batch} for w in (0, 1)]
    assert not of_worker[0] & of_worker[1]
    assert of_worker[0] | of_worker[1] == {0, 1, 2, 3}  # shard 4 is held out


def test_every_image_occurs_once_a_pass(tmp_path: Path) -> None:
    captions = stream(write_shards(tmp_path, 8), buffer=0)
    assert sorted(map(int, captions)) == list(range(64))


def test_order_is_shuffled_and_depends_on_the_start_alone(tmp_path: Path) -> None:
    write_shards(tmp_path, 8)
    assert stream(tmp_path) == stream(tmp_path)
    assert stream(tmp_path) != stream(tmp_path, clock=64)
    neighbours = [
        abs(int(a) - int(b)) == 1 for a, b in zip(stream(tmp_path), stream(tmp_path)[1:], strict=False)
    ]
    assert sum(neighbours) < 32


def test_example_captions_are_held_out_of_the_stream(tmp_path: Path) -> None:
    data = data_of(write_shards(tmp_path, 4), val_fraction=0.25)
    found = data.captions_to_watch(6)
    held_out = {row.captions[0] for row in data._rows.validation}
    assert len(found) == 6
    assert set(found) <= held_out


def test_processes_share_the_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, 8)
    parts = [{int(c) // 8 for c in stream(tmp_path, rank, 2)} for rank in (0, 1)]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 8


def test_validation_from_shards_of_its_own_or_from_the_last(tmp_path: Path) -> None:
    write_shards(tmp_path, 3)
    data = data_of(tmp_path, val_samples=6)
    batches = list(data.val_dataloader())
    assert [c for batch in batches for c in batch.captions] == ["16", "17", "18", "19", "20", "21"]
    for batch in batches:
        check_pairs(batch)
    source = WebDatasetSource(str(tmp_path / "{000..001}.tar"), val_path=str(tmp_path / "002.tar"))
    both = CaptionedImages(source, resolution=8, num_workers=0)
    assert len(both._loaded.shards) == 2
    validation = both.val_dataloader()
    assert not isinstance(validation, list)
    assert [c for batch in validation for c in batch.captions] == [str(n) for n in range(16, 24)]
    assert data.fingerprint != both.fingerprint


def test_shard_names_in_a_folder_give_the_split(tmp_path: Path) -> None:
    shard = {"a.png": encoded(Image.new("RGB", (8, 8))), "a.txt": b"a"}
    named = ("train-000000", "train-000001", "val_0", "composition-000000")
    for name in named:
        write_tar(tmp_path / "named" / f"{name}.tar", shard)

    def stems(source: WebDatasetSource) -> dict[str, list[str]]:
        return {split: [Path(file).stem for file in files] for split, files in source.shards().items()}

    folder = str(tmp_path / "named")
    found = {"composition": [named[3]], "train": [*named[:2]], "validation": [named[2]]}
    assert stems(WebDatasetSource(folder)) == found
    other = WebDatasetSource(folder, val_path=f"{folder}/{named[3]}.tar")
    assert stems(other) == {**found, "validation": [named[3]]}
    # All listed shards are used; if no name contains train, none is for validation either.
    assert stems(WebDatasetSource(f"{folder}/{{train-000000,val_0}}.tar")) == {"train": [named[0], named[2]]}
    for name in ("val-0", "flowers-0"):
        write_tar(tmp_path / "free" / f"{name}.tar", shard)
    assert stems(WebDatasetSource(str(tmp_path / "free"))) == {"train": ["flowers-0", "val-0"]}


def test_captions_are_read_from_json_or_a_chosen_suffix(tmp_path: Path) -> None:
    image = encoded(Image.new("RGB", (8, 8)))
    files = {
        "a.jpg": image, "a.json": json.dumps({"id": 1, "caption": "from json"}).encode(),
        "b.jpg": image, "b.json": json.dumps({"captions": ["one", "two"]}).encode(), "b.alt": b"from alt",
        "c.jpg": image, "c.json": b"{broken",
    }  # fmt: skip
    shard = str(write_tar(tmp_path / "0.tar", files))

    def captions(source: WebDatasetSource) -> list[tuple[str, ...]]:
        from imagen_pl.data.skipped_images import SkippedImages

        return [row.captions for row, _ in source.read(shard, SkippedImages())]

    assert captions(WebDatasetSource(shard)) == [("from json",), ("one", "two"), ()]
    assert captions(WebDatasetSource(shard, caption_key="alt")) == [(), ("from alt",), ()]


def test_bad_images_are_warned_of_once_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = encoded(Image.new("RGB", (16, 16)))
    files = {"good.png": good, "good.txt": b"0", "silent.png": good, "orphan.txt": b"no image"}
    for i in range(3):
        files |= {f"cut{i}.jpg": truncated_jpeg(), f"cut{i}.txt": b"cut", f"tiny{i}.txt": b"tiny"}
        files |= {
            f"tiny{i}.png": encoded(Image.new("RGB", (1, 1))),
            f"bad{i}.png": b"?",
            f"bad{i}.txt": b"bad",
        }
    write_tar(tmp_path / "0.tar", files)
    data = data_of(tmp_path, val_fraction=0)
    with caplog.at_level(logging.WARNING):
        for batch in data.train_dataloader():
            assert batch.captions == ["0"] * 4
    output = [record.getMessage().removeprefix(f"{tmp_path}: ") for record in caplog.records]
    assert sorted(output) == [
        "skipped so far: 6 unreadable (0.tar/bad0, 0.tar/bad1, 0.tar/bad2, ...), "
        "3 smaller than 4 px (0.tar/tiny0, 0.tar/tiny1, 0.tar/tiny2), "
        "1 with an empty caption (0.tar/silent), 1 without an image (0.tar/orphan)",
        "skipping images smaller than 4 px, as 0.tar/tiny0",
        "skipping images unreadable, as 0.tar/bad0",
        "skipping images with an empty caption, as 0.tar/silent",
        "skipping images without an image, as 0.tar/orphan",
    ]


def test_truncated_shard_gives_its_complete_images(tmp_path: Path) -> None:
    write_shards(tmp_path, 2)
    whole = (tmp_path / "000.tar").read_bytes()
    (tmp_path / "000.tar").write_bytes(whole[: len(whole) // 2 + 100])
    assert len(set(stream(tmp_path, buffer=0))) > 8


def test_bad_shards_give_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        data_of(tmp_path / "nowhere").setup()
    with pytest.raises(UserError, match=r"002.tar does not exist"):
        data_of(write_shards(tmp_path / "a", 2) / "{000..002}.tar").setup()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no \.tar files"):
        data_of(tmp_path / "empty").setup()
    with pytest.raises(
        UserError, match=r"is a single shard: write at least 2, .* or give data.val_fraction 0"
    ):
        data_of(write_shards(tmp_path / "one", 1)).setup()
    write_tar(tmp_path / "junk/0.tar", {"a.txt": b"no image"})
    data = data_of(tmp_path / "junk", val_fraction=0)
    with pytest.raises(UserError, match=r"no usable image in .*0.tar: 1 without an image \(0.tar/a\)"):
        next(iter(data.train_dataloader()))
    missing = StreamImages(WebDatasetSource("x"), [str(tmp_path / "a.tar")], SampleProcessing(), 5)
    with pytest.raises(UserError, match=r"no usable image in .*a.tar: 1 shards missing"):
        missing[BatchPlan(np.arange(2), None, 8)]
