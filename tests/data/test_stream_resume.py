"""A resumed stream returns bitwise the same images as an uninterrupted one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.shard_lanes import ShardLane
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row
from imagen_pl.data.sources.webdataset import WebDatasetSource
from imagen_pl.data.stream_positions import workers_for
from imagen_pl.schedules import Stage
from imagen_pl.types import CaptionedBatch, LanePosition
from tests.helpers.image_files import encoded, noise, write_tar
from tests.helpers.training import SHORT, AtEachBatch, SaveAt, assert_same, tiny_gan, train, weights_of

SHARDS = 7
BATCHES = 60  # of 4 and then of 2 images: several passes over 42 images or more


def write_set(folder: Path) -> Path:
    """Shards of 5 to 11 images; some are too small or cannot be decoded, so that batches read more rows."""
    number = 0
    for shard in range(SHARDS):
        files: dict[str, bytes] = {}
        for i in range(5 + shard):
            image = encoded(noise(16, 16, seed=number))
            if i == 2:
                image = encoded(Image.new("RGB", (1, 1)))
            if i == 4:
                image = image[:200]  # its size can be read, its pixels cannot
            files |= {f"{number:04}.png": image, f"{number:04}.txt": f"number {number}".encode()}
            number += 1
        write_tar(folder / f"{shard:02}.tar", files)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("shards"))


def data_of(folder: Path, workers: int, **settings: Any) -> CaptionedImages:
    data = CaptionedImages(
        WebDatasetSource(str(folder)), num_workers=workers, epoch_kimg=0.018, val_fraction=0,
        horizontal_flip=True, **settings,
    )  # fmt: skip
    data.run_state.stages = [Stage(8, 0.06, 4), Stage(16, 1, 2)]
    return data


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagen_pl.data.datamodule._BUFFER", 6)


def batches_of(data: CaptionedImages) -> Iterator[CaptionedBatch]:
    """Epoch after epoch, as in a run: the clock advances after each batch."""
    loader = data.train_dataloader()
    while True:
        for batch in loader:
            yield batch
            data.run_state.images_seen += len(batch)


def saved_after(data: CaptionedImages, count: int) -> tuple[list[CaptionedBatch], dict[str, Any]]:
    """The first batches, and the checkpoint state after them, while the next ones are prefetched."""
    running = batches_of(data)
    first = [next(running) for _ in range(count + 1)]
    state: dict[str, Any] = json.loads(json.dumps(data.state_dict()))
    return first[:count], state


def same(a: list[CaptionedBatch], b: list[CaptionedBatch]) -> None:
    assert [batch.captions for batch in a] == [batch.captions for batch in b]
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.indices, other.indices)


def resumed(folder: Path, state: dict[str, Any], workers: int, count: int) -> list[CaptionedBatch]:
    data = data_of(folder, workers)
    data.run_state.images_seen = state["images_seen"]
    data.load_state_dict(state)
    return list(islice(batches_of(data), count))


def test_a_second_loader_of_a_run_continues_after_the_first(shards: Path) -> None:
    """Also after a checkpoint was loaded, which is used by the first loader alone."""
    whole = list(islice(batches_of(data_of(shards, 0)), 30))
    _, state = saved_after(data_of(shards, 0), 5)
    data = data_of(shards, 0)
    data.run_state.images_seen = state["images_seen"]
    data.load_state_dict(state)
    for first in (5, 12, 19):
        batches = batches_of(data)
        same([next(batches) for _ in range(7)], whole[first : first + 7])
        data.run_state.images_seen += len(
            whole[first + 6]
        )  # batches_of counts a batch when asked for the next


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_resumed_stream_returns_the_same_images(shards: Path, workers: int) -> None:
    """Stopped in the middle of an epoch, at its end, and twice; batches are prefetched."""
    whole = list(islice(batches_of(data_of(shards, workers)), BATCHES))
    assert len({batch.images.shape[-1] for batch in whole}) == 2
    for stop in (1, 4, 5, 18, 33):
        first, state = saved_after(data_of(shards, workers), stop)
        same(first, whole[:stop])
        same(resumed(shards, state, workers, BATCHES - stop), whole[stop:])
        again = data_of(shards, workers)
        again.run_state.images_seen = state["images_seen"]
        again.load_state_dict(state)
        second, later = saved_after(again, 7)
        same(second, whole[stop : stop + 7])
        same(resumed(shards, later, workers, 5), whole[stop + 7 : stop + 12])


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_another_number_of_workers_returns_the_same_images(shards: Path, workers: int) -> None:
    """A run that was started with two workers keeps two lanes."""
    whole = list(islice(batches_of(data_of(shards, 2)), 24))
    _, state = saved_after(data_of(shards, 2), 7)
    same(resumed(shards, state, workers, 17), whole[7:])


def test_a_checkpoint_from_before_a_failed_batch_repeats_it(shards: Path) -> None:
    """When a batch fails, the clock has not advanced, but the loader has returned it and the next one."""
    data = data_of(shards, 0)
    loader = iter(data.train_dataloader())
    first = next(loader)
    data.run_state.images_seen = 4
    second, _ = next(loader), next(loader)
    state = data.state_dict()
    assert state["images_seen"] == 4
    assert first.captions != second.captions
    same(resumed(shards, state, 0, 1), [second])


def test_an_epoch_that_is_cut_short_loses_no_image(shards: Path) -> None:
    """As with trainer.limit_train_batches: prefetched batches are read again."""
    whole = list(islice(batches_of(data_of(shards, 2)), 12))
    data = data_of(shards, 2)
    loader = data.train_dataloader()
    found = []
    for _ in range(4):
        for batch in islice(loader, 3):
            found.append(batch)
            data.run_state.images_seen += len(batch)
    assert sorted(c for b in found[:8] for c in b.captions) == sorted(
        c for b in whole[:8] for c in b.captions
    )


@pytest.mark.parametrize("changed", ["shards", "seed", "processes"])
def test_a_checkpoint_that_does_not_match_warns_and_restarts_the_stream(
    shards: Path, tmp_path: Path, changed: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, state = saved_after(data_of(shards, 0), 3)
    folder = shards
    if changed == "shards":
        folder = write_set(tmp_path)
        (folder / "00.tar").rename(folder / "new.tar")
    if changed == "processes":
        state["world_size"] = 2
    data = data_of(folder, 0, seed=1 if changed == "seed" else 0)
    data.run_state.images_seen = 12
    data.load_state_dict(state)
    with caplog.at_level(logging.WARNING):
        assert len(list(islice(batches_of(data), 3))) == 3
    lines = [record.getMessage() for record in caplog.records if "order" in record.getMessage()]
    assert len(lines) == 1
    reason = (
        "it had 2 processes and this run has 1" if changed == "processes" else "the shards or the seed differ"
    )
    assert lines[0].startswith(f"{folder}: the images are in a new order since the checkpoint: ")
    assert lines[0].endswith(reason)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_equals_an_uninterrupted_one(shards: Path, tmp_path: Path, workers: int) -> None:
    """Bitwise equal weights and the same images, from a checkpoint in the middle of an epoch."""

    def trained(until: int, ckpt_path: Path | None = None) -> tuple[dict[str, Any], list[list[str]]]:
        gan, captions = tiny_gan(), list[list[str]]()
        note = AtEachBatch(after=lambda _, batch: captions.append(batch.captions))
        data = data_of(shards, workers)
        train(gan, until, [note, SaveAt({40: tmp_path / "middle.ckpt"})], data, ckpt_path, stages=SHORT)
        return weights_of(gan), captions

    weights, captions = trained(64)
    resumed_weights, rest = trained(64, tmp_path / "middle.ckpt")
    assert rest == captions[-len(rest) :]
    assert sum(map(len, rest)) == 24
    assert_same(resumed_weights, weights)


# ------------------------------------------------------------------ lanes


def numbered_lane(
    sizes: list[int], block: int, start: LanePosition | None = None, opened: list[int] | None = None
) -> ShardLane:
    """Rows "shard/row"; a row whose number is divisible by 5 cannot be used."""

    def read(shard: int) -> Iterator[tuple[Row, bytes] | None]:
        if opened is not None:
            opened.append(shard)
        for row in range(sizes[shard]):
            yield None if row % 5 == 4 else (Row(f"{shard}/{row}", ("a",), None), b"")

    def order(cycle: int) -> Any:
        return np.random.default_rng(cycle).permutation(len(sizes))

    return ShardLane(order, read, block, (3,), start or LanePosition(), lambda shards: None)


@pytest.mark.parametrize("block", [1, 4, 1000])
def test_each_usable_row_occurs_once_a_pass_and_any_position_can_be_resumed(block: int) -> None:
    sizes = [7, 1, 12, 3]
    lane = numbered_lane(sizes, block)
    usable = sorted(f"{s}/{r}" for s, size in enumerate(sizes) for r in range(size) if r % 5 != 4)
    names, positions = [], []
    for _ in range(3 * len(usable)):
        positions.append(lane.position)
        names.append(next(lane)[0].name)
    for first in range(0, len(names), len(usable)):
        assert sorted(names[first : first + len(usable)]) == usable
    for i in range(0, len(names) - 6):
        again = numbered_lane(sizes, block, positions[i])
        assert again.position == positions[i]
        assert [next(again)[0].name for _ in range(6)] == names[i : i + 6]


def test_resuming_opens_only_the_shards_of_its_block() -> None:
    sizes = [10] * 40
    lane = numbered_lane(sizes, 20)
    for _ in range(250):
        next(lane)
    opened: list[int] = []
    next(numbered_lane(sizes, 20, lane.position, opened))
    assert len(opened) <= 6  # not the 32 that were read: the current block, and the part of the next one


def test_lanes_divide_evenly_among_workers() -> None:
    assert [workers_for(8, most) for most in (0, 1, 2, 3, 5, 8, 9)] == [0, 1, 2, 2, 4, 8, 8]
    assert workers_for(7, 4) == 1


def test_skipped_images_are_reported_in_one_line_an_epoch(
    shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Over all workers; an image counts once, even if several passes skip it."""
    data = data_of(shards, 2)
    with caplog.at_level(logging.WARNING):
        list(islice(batches_of(data), BATCHES))
    lines = [record.getMessage() for record in caplog.records if "skipped so far" in record.getMessage()]
    assert 1 <= len(lines) <= 4
    assert lines[-1].startswith(f"{shards}: skipped so far: 7 ")
    assert "7 smaller than 8 px (0" in lines[-1]
    assert "7 unreadable (0" in lines[-1]
    data.teardown("fit")
    assert sum("skipped so far" in record.getMessage() for record in caplog.records) == len(lines)


def test_count_once_counts_each_name_once_for_each_reason() -> None:
    problems = SkippedImages(count_once=True)
    for reason, name in (("unreadable", "a"), ("unreadable", "a"), ("missing", "a"), ("unreadable", "b")):
        problems.add(reason, name)
    assert problems.counts == {"unreadable": 2, "missing": 1}
