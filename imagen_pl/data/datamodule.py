"""Captioned images for training and validation."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from imagen_pl.data.batch_samplers import (
    BatchPlan,
    GroupedShuffle,
    Integers,
    Shuffle,
    TrainingBatches,
    ValidationBatches,
)
from imagen_pl.data.dataset import RowImages, SampleProcessing, StreamImages
from imagen_pl.data.fingerprint import add_images, add_rows, add_stream, data_version
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Source, StreamSource
from imagen_pl.data.splits import LoadedSplits, by_group, check_rows, held_out, read_stream, smallest_side
from imagen_pl.data.transforms import parse_background
from imagen_pl.errors import UserError
from imagen_pl.schedules import RunState, Stage
from imagen_pl.types import CaptionedBatch, Growth

log = logging.getLogger(__name__)

Item = TypeVar("Item")

_STREAMED = 10_000
_PAIRS = 64  # a batch


class CaptionedImages(LightningDataModule):
    """Captioned images from a source, at the resolution that is being learnt.

    Args:
        source: where images and captions come from, as imagen_pl.data.sources.folder.FolderSource.
        resolution: side of the images, px, where no growth is set up; the growth stages replace it.
        batch_size: images a step over all processes, where no growth is set up.
        num_workers: processes that load images; None takes none if all training images fit the
            cache, else one less than the CPU cores that each training process has, at most 8.
        fit: "crop" keeps the middle square of an image; "pad" keeps it whole and fills up the sides.
        background: colour behind transparent pixels and at padded sides: a name, or #rrggbb.
        horizontal_flip: mirror half of the images. Captions that say left or right become wrong.
        caption_dropout: share of captions replaced by "", 0 to 1, for guidance without a caption.
        epoch_kimg: an epoch ends at each multiple of this many thousand images; validation follows.
        val_split: the split that is scored, as validation or test.
        val_fraction: share of the training rows held out for validation if the source has no
            validation split, 0 to 0.5; chosen by the rows' names, so it stays the same; at least 1.
            0 trains on all and skips validation. A stream holds out whole shards.
        val_samples: score at most this many rows, chosen once at random; None takes all, of a
            stream 1,000.
        val_batch_size: images a step of validation on each process.
        min_size: shorter side, px, below which images are skipped; None takes half of the largest
            resolution trained.
        cache_mb: keep decoded images in memory, as long as a resolution's fit in this many MB. Each
            worker keeps its own.
        balance_groups: train on each group of near-alike images as often as on a single image, and score the
            first of each alone. The source says what its groups are, as the skin tones of an emoji.
        seed: of the order of images, flips, dropped captions and the choice among several captions.
    """

    def __init__(
        self,
        source: Source | StreamSource,
        resolution: int = 64,
        batch_size: int = 64,
        num_workers: int | None = None,
        fit: Literal["crop", "pad"] = "crop",
        background: str = "white",
        horizontal_flip: bool = False,
        caption_dropout: float = 0.0,
        epoch_kimg: float = 10.0,
        val_split: str = "validation",
        val_fraction: float = 0.05,
        val_samples: int | None = None,
        val_batch_size: int = 64,
        min_size: int | None = None,
        cache_mb: float = 1024.0,
        balance_groups: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, good in (
            ("batch_size", batch_size, batch_size > 1),
            ("caption_dropout", caption_dropout, 0 <= caption_dropout <= 1),
            ("epoch_kimg", epoch_kimg, epoch_kimg * 1000 >= 1),
            ("val_fraction", val_fraction, 0 <= val_fraction <= 0.5),
            ("val_samples", val_samples, val_samples is None or val_samples > 0),
            ("val_batch_size", val_batch_size, val_batch_size > 0),
            ("num_workers", num_workers, num_workers is None or num_workers >= 0),
            ("cache_mb", cache_mb, cache_mb >= 0),
        ):
            if not good:
                raise UserError(f"data.{name} {value} is out of range: see imagen-pl fit --help")
        if resolution < 4 or resolution & (resolution - 1):
            raise UserError(f"data.resolution {resolution} is not a power of two from 4 up")
        self.source = source
        self.num_workers = num_workers
        self.epoch_images = round(epoch_kimg * 1000)
        self.val_split = val_split
        self.val_fraction = val_fraction
        self.val_samples = val_samples
        self.val_batch_size = val_batch_size
        self.min_size = min_size
        self.balance_groups = balance_groups
        self.cache_bytes = int(cache_mb * 2**20)
        self.run_state = RunState(Growth(resolution))
        self._only_stage = [Stage(resolution=resolution, kimg=math.inf, batch_size=batch_size)]
        self._shared: RowImages | None = None
        self._training = SampleProcessing(
            fit, parse_background(background), horizontal_flip, caption_dropout, seed
        )
        self._scoring = SampleProcessing(fit, parse_background(background), seed=seed)

    # ------------------------------------------------------------------ the run

    def follow(self, run_state: RunState) -> None:
        """Plan batches by a run's clock and stages; the LightningModule calls it in its `setup`."""
        self.run_state = run_state

    @property
    def stages(self) -> list[Stage]:
        """The growth stages; one of `resolution` and `batch_size` where no growth is set up."""
        return self.run_state.stages or self._only_stage

    # ------------------------------------------------------------------ what there is

    def setup(self, stage: str | None = None) -> None:
        """Read the source's index, so that what is wrong with it stops the run at once."""
        _ = self._loaded

    def captions(self) -> list[str] | None:
        """Every caption that training or validation can ask for; None for a stream."""
        if self.is_stream:
            return None
        found = {
            caption
            for rows in (self._rows.train, self._rows.validation)
            for r in rows
            for caption in r.captions
        }
        if self._training.caption_dropout:
            found.add("")
        return sorted(found)

    def some_captions(self) -> list[str]:
        """Captions of training, to see how they are worded: all, or the first 10,000 of a stream."""
        if not isinstance(self.source, StreamSource):
            return [caption for row in self._rows.train for caption in row.captions]
        problems = SkippedImages()
        read = (row for shard in self._loaded.shards for row, _ in self.source.read(shard, problems))
        return [caption for row in islice(read, _STREAMED) for caption in row.captions]

    def pairs(self, number: int, largest: int, one_a_group: bool = True) -> Iterator[CaptionedBatch]:
        """Training images, each with one caption, in batches; kernel-ridge modules are fitted to them.

        Args:
            number: at most this many: rows spread over the whole set, with their first caption; of a stream,
                the images of the first shards.
            largest: side of the images, px, unless the final resolution is smaller.
            one_a_group: take only the first image of each group of near-duplicates.

        Raises:
            UserError: no image can be decoded.
        """
        resolution = min(self._final_resolution(), largest)
        if isinstance(self.source, StreamSource):
            yield from self._stream(self.source, self._scoring).once(number, _PAIRS, resolution)
            return
        rows = [replace(row, captions=row.captions[:1]) for row in self._rows.train]
        firsts = self._pair_rows(number, one_a_group)
        # The training loader will need these images too, if it works in this process and at this resolution.
        shared = self._training_workers() == 0 and resolution == self.run_state.growth.resolution
        cache_bytes = self.cache_bytes if shared else 0
        dataset = RowImages(self.source, rows, self._scoring, cache_bytes, self.run_state.text_lookup)
        self._share(dataset)
        for part in np.split(firsts, range(_PAIRS, len(firsts), _PAIRS)):
            yield dataset[BatchPlan(part, part, resolution)]

    def pair_count(self, number: int) -> int:
        """How many images `pairs` gives; of a stream, at most."""
        return number if self.is_stream else len(self._pair_rows(number))

    def pairs_fingerprint(self, number: int, largest: int) -> str:
        """Changes with the images and captions that `pairs` gives.

        Images in separate files count by size and time of change, and a stream by its shards and its first 16
        images, so that no more than an index is read of large sets.
        """
        processing = self._scoring
        settings = (
            min(self._final_resolution(), largest), self._smallest(), processing.fit, processing.background
        )  # fmt: skip
        digest = hashlib.sha256(repr(settings).encode())
        if isinstance(self.source, StreamSource):
            digest.update(f"{number} {processing.seed}".encode())
            add_stream(digest, self.source, self._loaded.shards)
        else:
            rows, chosen = self._rows.train, self._pair_rows(number).tolist()
            digest.update(repr([(row.name, row.captions[0]) for row in rows]).encode())
            digest.update(repr(chosen).encode())
            add_images(digest, self.source, [rows[i] for i in chosen])
        return digest.hexdigest()[:32]

    def _pair_rows(self, number: int, one_a_group: bool = True) -> Integers:
        rows = self._rows.train
        every = [group[0] for group in by_group(rows)] if one_a_group else list(range(len(rows)))
        return np.array(_spread(every, number), dtype=np.int64)

    def example_captions(self, number: int = 64) -> list[str]:
        """Captions of training from all over the data set; none of a stream, which would have to be read."""
        if self.is_stream:
            return []
        return _spread(self.some_captions(), number)

    def captions_to_watch(self, number: int = 16) -> list[str]:
        """What to draw while a model learns: half of training and half held out; of a stream the latter."""
        held_out = [row.captions[0] for row in self._rows.validation]
        trained = self.example_captions(number // 2 if held_out else number)
        return trained + _spread(held_out, number - len(trained))

    def held_out_captions(self) -> list[str]:
        """The first caption of every held-out row; the images are not looked at."""
        return [row.captions[0] for row in self._loaded.validation if row.captions]

    @property
    def is_stream(self) -> bool:
        return isinstance(self.source, StreamSource)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the validation images: what keeps statistics of real images apart.

        Of the rows' names and captions, the bytes of 16 images among them, and how images are fitted.
        """
        rows, processing = self._rows.validation, self._scoring
        drawn = None if self.val_samples is None else (self.val_samples, processing.seed)
        settings = (len(rows), processing.fit, processing.background, drawn, self.balance_groups)
        digest = hashlib.sha256(repr(settings).encode())
        add_rows(digest, self._rows.source, rows)
        return digest.hexdigest()[:16]

    @cached_property
    def training_fingerprint(self) -> str | None:
        """Changes with the training images; None where training and validation images are the same."""
        if self.val_split == "train":
            return None
        processing = self._scoring
        settings = (self.version()["digest"], self._smallest(), processing.fit, processing.background)
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]

    def version(self) -> dict[str, Any]:
        """What is trained on and scored, with a digest that changes with it; see `data_version`."""
        return data_version(self.source, self._rows)

    @cached_property
    def _loaded(self) -> LoadedSplits:
        if isinstance(self.source, StreamSource):
            return read_stream(self.source, self.val_split, self.val_fraction, self.val_samples or 1000)
        return held_out(self.source, self.val_split, self.val_fraction)

    @cached_property
    def _rows(self) -> LoadedSplits:
        """The rows that can be used, once the stages are known."""
        checked = check_rows(self._loaded, self._smallest())
        if checked.problems.total():
            rank_zero_only(log.warning)(
                "%s: skipped %d of %d images: %s",
                self.source.path, checked.problems.total(), checked.total, checked.problems.summary(),
            )  # fmt: skip
        return checked

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> DataLoader[CaptionedBatch]:
        if self.trainer is not None and getattr(self.trainer, "overfit_batches", False):
            raise UserError(
                "--trainer.overfit_batches does not work here: train on a source with fewer images"
            )
        rank, world_size = self._process()
        if isinstance(self.source, StreamSource):
            return self._stream_loader(self.source, rank, world_size)
        rows = self._rows.train
        workers = self._training_workers()
        dataset = RowImages(self.source, rows, self._training, self.cache_bytes, self.run_state.text_lookup)
        self._share(dataset)
        seed = self._training.seed
        shuffle = GroupedShuffle(by_group(rows), seed) if self.balance_groups else Shuffle(len(rows), seed)
        return self._loader(dataset, self._batches(shuffle, rank, world_size), workers)

    def val_dataloader(self) -> DataLoader[CaptionedBatch] | list[DataLoader[CaptionedBatch]]:
        rows = self._rows.validation
        if not rows:
            return []
        numbers = np.arange(len(rows), dtype=np.int64)
        if self.balance_groups:
            numbers = np.array([group[0] for group in by_group(rows)], dtype=np.int64)
        if self.val_samples is not None and self.val_samples < len(numbers):
            chosen = np.random.default_rng([self._scoring.seed, len(numbers)]).permutation(len(numbers))
            numbers = numbers[np.sort(chosen[: self.val_samples])]
        dataset = RowImages(
            self._rows.source, rows, self._scoring, self.cache_bytes, self.run_state.text_lookup
        )
        rank, world_size = self._process()
        sampler = ValidationBatches(
            numbers, self.val_batch_size, lambda: self.run_state.growth.resolution, rank, world_size
        )
        workers = self._workers(len(rows) * 3 * self._final_resolution() ** 2 <= self.cache_bytes)
        return self._loader(dataset, sampler, workers)

    def _stream_loader(self, source: StreamSource, rank: int, world_size: int) -> DataLoader[CaptionedBatch]:
        shards = self._loaded.shards
        if len(shards) < world_size:
            raise UserError(
                f"{source.path}: {len(shards)} training shards cannot be shared out among {world_size} "
                "processes: write more, smaller shards"
            )
        workers = min(self._workers(in_memory=False), len(shards) // world_size)
        dataset = self._stream(source, self._training, rank, world_size)
        return self._loader(dataset, self._batches(None, rank, world_size), workers)

    def _stream(
        self, source: StreamSource, processing: SampleProcessing, rank: int = 0, world_size: int = 1
    ) -> StreamImages:
        smallest = self._smallest()
        return StreamImages(
            source,
            self._loaded.shards,
            processing,
            buffer=1000,
            rank=rank,
            world_size=world_size,
            text_lookup=self.run_state.text_lookup,
            smallest=smallest,
        )

    def _batches(self, shuffle: Shuffle | None, rank: int, world_size: int) -> TrainingBatches:
        return TrainingBatches(
            shuffle,
            lambda: self.stages,
            lambda: self.run_state.images_seen,
            self.epoch_images,
            rank,
            world_size,
        )

    def _loader(
        self,
        dataset: RowImages | StreamImages,
        sampler: TrainingBatches | ValidationBatches,
        workers: int,
    ) -> DataLoader[CaptionedBatch]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,  # the sampler's plans are whole batches
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=on_gpu,
        )

    def _workers(self, in_memory: bool) -> int:
        if self.num_workers is not None:
            return self.num_workers
        if in_memory:
            return 0
        local = self.trainer.num_devices if self.trainer is not None else 1
        return max(0, min(8, _cpu_cores() // local - 1))

    def _training_workers(self) -> int:
        rows = len(self._rows.train)
        return self._workers(in_memory=rows * 3 * self._final_resolution() ** 2 <= self.cache_bytes)

    def _share(self, dataset: RowImages) -> None:
        """Share the list of broken images, so that each is reported once, and the decoded images.

        The data sets must have the same rows, fit and background.
        """
        if self._shared is not None:
            dataset.share(self._shared)
        self._shared = dataset

    def _smallest(self) -> int:
        """Shortest side of an image that is used, px."""
        return smallest_side(self._final_resolution(), self.min_size)

    def _final_resolution(self) -> int:
        return self.stages[-1].resolution

    def _process(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def _spread(items: Sequence[Item], number: int) -> list[Item]:
    """So many of them, from the first to the last."""
    places = np.linspace(0, len(items) - 1, num=min(number, len(items)), dtype=int)
    return [items[i] for i in places]


def _cpu_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
