"""Captioned images for training and validation."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from imagen_pl.data.batch_samplers import (
    BatchPlan,
    CaptionGroups,
    GroupedShuffle,
    Shuffle,
    StreamTurn,
    TrainingBatches,
    ValidationBatches,
)
from imagen_pl.data.captioned_rows import CaptionedRows
from imagen_pl.data.dataset import RowImages, StreamImages
from imagen_pl.data.image_caption_pairs import ImageCaptionPairs, RowPairs, StreamPairs
from imagen_pl.data.sample_processing import SampleProcessing
from imagen_pl.data.sources.base import Row, Source, StreamSource
from imagen_pl.data.splits import by_group, evenly_spread
from imagen_pl.data.stream_positions import RunStreams, StreamLoader, StreamPositions, order_of, workers_for
from imagen_pl.data.transforms import parse_background
from imagen_pl.errors import UserError
from imagen_pl.schedules import RunState, Stage
from imagen_pl.types import CaptionedBatch, Growth

_BUFFER = 1000  # images of a stream that are shuffled together, in each lane


class CaptionedImages(CaptionedRows):
    """Captioned images from a source, at the resolution that is being learnt.

    Args:
        source: where images and captions come from, as imagen_pl.data.sources.folder.FolderSource.
        resolution: height of the images, px, where no growth is set up; the growth stages replace it.
        batch_size: images a step over all processes, where no growth is set up.
        num_workers: processes that load images; None takes none if all training images fit the
            cache, else one less than the CPU cores that each training process has, at most 8.
        fit: "crop" keeps the largest centred part of an image that has the aspect ratio; "pad" keeps it whole
            and fills up the sides.
        crop_from: decode images at this height, px, and give a random part of each to the networks, as an
            Upsampler learns; validation too has parts, the same each time. None gives whole images. Smaller
            images are then skipped, unless `min_size` is set.
        background: colour behind transparent pixels and at padded sides: a name, or #rrggbb.
        aspect_ratio: width of the images / their height, as 1.5 for 48 x 32 px; resolutions are heights.
            `fit` says how images of another shape get it. It sets `aspect_ratio` of the networks.
        alpha: keep the transparency of images as a fourth channel, so that the model draws with transparency.
            It sets `image_channels` of the networks. Padded sides are transparent then.
        pictures_per_caption: number of training images with the same caption in each batch, for captions that
            have so many. Set `minibatch_stddev` of the discriminator to the same number: it then compares the
            variation within a caption, which prevents mode collapse. 1 samples images independently; sources
            that are streams need 1.
        own_captions: share of these groups, 0 to 1, in which each image has another of its captions,
            as images of "bell" have "bell, outline" and "bell, filled". These are hard negatives for
            MismatchedCaptions and ImageTextContrastive. It needs images with several captions.
        shared_attributes: share of these groups, 0 to 1, whose images have different subjects and the same
            attributes, as "bell, Tabler Icons, outline" and "home, Tabler Icons, outline". It teaches
            attributes that are rarely named. It needs captions with a comma after the subject.
        horizontal_flip: mirror half of the images. Captions that say left or right become wrong.
        caption_dropout: share of captions replaced by "", 0 to 1, for guidance without a caption.
        epoch_kimg: an epoch ends at each multiple of this many thousand images; validation follows.
        train_samples: train on at most this many images, 2 or more, chosen once at random by `seed`; None
            takes all. It shows how a method does on a small data set.
        val_split: the split that is scored, as validation or test.
        val_fraction: share of the training rows held out for validation if the source has no
            validation split, 0 to 0.5; chosen by the rows' names, so it stays the same; at least 1.
            0 trains on all and skips validation. A stream holds out whole shards.
        val_samples: score at most this many rows, chosen once at random; None takes all, of a
            stream 1,000.
        val_batch_size: images a step of validation on each process.
        min_size: shorter side, px, below which images are skipped; None takes `crop_from`, or without it half
            of the shorter side of the largest images trained.
        cache_mb: keep decoded images in memory that the workers share, if all images of a resolution fit in
            this many MB.
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
        crop_from: int | None = None,
        background: str = "white",
        aspect_ratio: float = 1.0,
        alpha: bool = False,
        pictures_per_caption: int = 1,
        own_captions: float = 0.0,
        shared_attributes: float = 0.0,
        horizontal_flip: bool = False,
        caption_dropout: float = 0.0,
        epoch_kimg: float = 10.0,
        train_samples: int | None = None,
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
            ("pictures_per_caption", pictures_per_caption, pictures_per_caption > 0),
            ("own_captions", own_captions, 0 <= own_captions <= 1),
            ("shared_attributes", shared_attributes, 0 <= shared_attributes <= 1),
            ("val_fraction", val_fraction, 0 <= val_fraction <= 0.5),
            ("train_samples", train_samples, train_samples is None or train_samples > 1),
            ("val_samples", val_samples, val_samples is None or val_samples > 0),
            ("val_batch_size", val_batch_size, val_batch_size > 0),
            ("num_workers", num_workers, num_workers is None or num_workers >= 0),
            ("cache_mb", cache_mb, cache_mb >= 0),
            ("crop_from", crop_from, crop_from is None or crop_from > 0),
            ("aspect_ratio", aspect_ratio, 0.01 <= aspect_ratio <= 100),
        ):
            if not good:
                raise UserError(f"data.{name} {value} is out of range: see imagen-pl fit --help")
        if resolution < 4 or resolution & (resolution - 1):
            raise UserError(f"data.resolution {resolution} is not a power of two from 4 up")
        colour = parse_background(background)
        if alpha and colour != (255, 255, 255):
            raise UserError(
                f"data.background {background} has no effect with data.alpha, which keeps transparent pixels "
                "transparent: leave it at white"
            )
        if pictures_per_caption > 1 and isinstance(source, StreamSource):
            raise UserError(
                f"data.pictures_per_caption {pictures_per_caption} needs images that can be read in any "
                "order, and this source is a stream: set it to 1"
            )
        if train_samples is not None and isinstance(source, StreamSource):
            raise UserError(
                f"data.train_samples {train_samples} needs images that can be read in any order, and this "
                "source is a stream: write a stream with fewer images"
            )
        for name, share in (("own_captions", own_captions), ("shared_attributes", shared_attributes)):
            if share and pictures_per_caption == 1:
                raise UserError(
                    f"data.{name} {share} needs groups of images: set data.pictures_per_caption to 4, for "
                    "example"
                )
        self.source = source
        self.pictures_per_caption = pictures_per_caption
        self.own_captions, self.shared_attributes = own_captions, shared_attributes
        self.num_workers = num_workers
        self.epoch_images = round(epoch_kimg * 1000)
        self.train_samples = train_samples
        self.val_split = val_split
        self.val_fraction = val_fraction
        self.val_samples = val_samples
        self.val_batch_size = val_batch_size
        self.min_size = crop_from if min_size is None else min_size
        self.balance_groups = balance_groups
        self.cache_bytes = int(cache_mb * 2**20)
        self.run_state = RunState(Growth(resolution))
        self.only_stage = Stage(resolution=resolution, kimg=math.inf, batch_size=batch_size)
        self._shared: RowImages | None = None
        self._streams = RunStreams(source.path)
        self.val_processing = SampleProcessing(
            fit, colour, seed=seed, crop_from=crop_from, aspect_ratio=aspect_ratio, alpha=alpha
        )
        self.train_processing = replace(
            self.val_processing, horizontal_flip=horizontal_flip, caption_dropout=caption_dropout
        )

    # ------------------------------------------------------------------ the run

    def follow(self, run_state: RunState) -> None:
        """Plan batches by a run's clock and stages; the LightningModule calls it in its `setup`."""
        self.run_state = run_state

    def state_dict(self) -> dict[str, Any]:
        """The read positions of a stream. The order of other sources depends on the clock alone."""
        return self._streams.state_dict(self.run_state.images_seen)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._streams.load_state_dict(state_dict)

    def teardown(self, stage: str) -> None:
        self._streams.report.log()

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
        dataset = RowImages(
            self.source, rows, self.train_processing, self.cache_bytes, self.run_state.text_lookup,
            self.run_state.latent_lookup,
        )  # fmt: skip
        self._share(dataset)
        seed = self.train_processing.seed
        order: Shuffle | CaptionGroups
        order = GroupedShuffle(by_group(rows), seed) if self.balance_groups else Shuffle(len(rows), seed)
        if self.pictures_per_caption > 1:
            captions = [row.captions for row in rows]
            order = CaptionGroups(
                order, captions, self.pictures_per_caption, seed, self.own_captions, self.shared_attributes
            )
        if workers:
            dataset.share_among_workers(stage.resolution for stage in self.stages)
        return self._loader(dataset, self._batches(order, rank, world_size), workers)

    def val_dataloader(self) -> DataLoader[CaptionedBatch] | list[DataLoader[CaptionedBatch]]:
        rows = self._rows.validation
        if not rows:
            return []
        numbers = np.arange(len(rows), dtype=np.int64)
        if self.balance_groups:
            numbers = np.array([group[0] for group in by_group(rows)], dtype=np.int64)
        if self.val_samples is not None and self.val_samples < len(numbers):
            chosen = np.random.default_rng([self.val_processing.seed, len(numbers)]).permutation(len(numbers))
            numbers = numbers[np.sort(chosen[: self.val_samples])]
        dataset = RowImages(
            self._rows.source, rows, self.val_processing, self.cache_bytes, self.run_state.text_lookup
        )
        rank, world_size = self._process()
        sampler = ValidationBatches(
            numbers, self.val_batch_size, lambda: self.run_state.growth.resolution, rank, world_size
        )
        workers = self._workers(self._fit_the_cache(rows))
        return self._loader(dataset, sampler, workers)

    def batch_to_watch(self, number: int) -> CaptionedBatch:
        """Images and captions spread over the validation split, at the resolution that is being learnt.

        Where no images are held out, they are from the training set.
        """
        validation = self._rows.validation
        source = self._rows.source if validation else self.source
        if not isinstance(source, Source):
            raise UserError(
                "the grid of samples shows held-out images, and this stream has none: set data.val_fraction, "
                "or samples.captions to []"
            )
        images = RowImages(source, validation or self._rows.train, self.val_processing)
        numbers = np.array(evenly_spread(range(len(images)), number), dtype=np.int64)
        return images[BatchPlan(numbers, numbers, self.run_state.growth.resolution)]

    # ------------------------------------------------------------------ pairs for fits and metrics

    @property
    def pairs(self) -> ImageCaptionPairs:
        """Training images, each with one caption: neither shuffled nor flipped, without dropped captions."""
        final = self._final_resolution()
        if isinstance(self.source, StreamSource):
            return StreamPairs(self._stream(self.source, self.val_processing), final)
        rows = self._rows.train
        return RowPairs(self.source, rows, self.val_processing, final, self._smallest(), self._open_pairs)

    def fixed_images(self, resolution: int) -> RowImages | None:
        """All training images by row, where each is always the same; None of streams, flips and crops."""
        processing = self.train_processing
        if not isinstance(self.source, Source) or processing.horizontal_flip or processing.crop_from:
            return None
        return self._open_pairs(self.source, self._rows.train, resolution)

    def _open_pairs(self, source: Source, rows: list[Row], resolution: int) -> RowImages:
        # The training loader will need these images too, if it works in this process and at this resolution.
        shared = self._training_workers() == 0 and resolution == self.run_state.growth.resolution
        cache_bytes = self.cache_bytes if shared else 0
        images = RowImages(source, rows, self.val_processing, cache_bytes, self.run_state.text_lookup)
        self._share(images)
        return images

    # ------------------------------------------------------------------ parts of the loaders

    def _stream_loader(self, source: StreamSource, rank: int, world_size: int) -> DataLoader[CaptionedBatch]:
        shards = self._loaded.shards
        if len(shards) < world_size:
            raise UserError(
                f"{source.path}: {len(shards)} training shards cannot be shared out among {world_size} "
                "processes: write more, smaller shards"
            )
        most = min(self._workers(in_memory=False), len(shards) // world_size)
        order = order_of(shards, self.train_processing.seed, _BUFFER)
        positions = StreamPositions(order, max(1, most), rank, world_size, self._gather)
        lanes = self._streams.begin(positions).lanes  # as many as the checkpoint has
        dataset = self._stream(source, self.train_processing, rank, world_size, lanes)
        sampler = self._batches(None, rank, world_size, positions.turns)
        loader = self._loader(dataset, sampler, workers_for(lanes, most), StreamLoader)
        assert isinstance(loader, StreamLoader)
        loader.streams = self._streams
        return loader

    def _gather(self, own: Tensor) -> Tensor:
        """Gather a tensor from every process, by rank."""
        if self.trainer is None or self.trainer.world_size == 1:
            return own[None]
        strategy = self.trainer.strategy
        return strategy.all_gather(own.to(strategy.root_device))

    def _stream(
        self,
        source: StreamSource,
        processing: SampleProcessing,
        rank: int = 0,
        world_size: int = 1,
        lanes: int = 1,
    ) -> StreamImages:
        return StreamImages(
            source,
            self._loaded.shards,
            processing,
            buffer=_BUFFER,
            rank=rank,
            world_size=world_size,
            text_lookup=self.run_state.text_lookup,
            smallest=self._smallest(),
            lanes=lanes,
        )

    def _batches(
        self,
        order: Shuffle | CaptionGroups | None,
        rank: int,
        world_size: int,
        turns: Callable[[int], Iterator[StreamTurn]] | None = None,
    ) -> TrainingBatches:
        return TrainingBatches(
            order,
            lambda: self.stages,
            lambda: self.run_state.images_seen,
            self.epoch_images,
            rank,
            world_size,
            **({} if turns is None else {"turns": turns}),
        )

    def _loader(
        self,
        dataset: RowImages | StreamImages,
        sampler: TrainingBatches | ValidationBatches,
        workers: int,
        kind: type[DataLoader[CaptionedBatch]] = DataLoader,
    ) -> DataLoader[CaptionedBatch]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return kind(
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
        return self._workers(self._fit_the_cache(self._rows.train))

    def _fit_the_cache(self, rows: list[Row]) -> bool:
        shape = self.train_processing.shape(self._final_resolution())
        return len(rows) * math.prod(shape) <= self.cache_bytes

    def _share(self, dataset: RowImages) -> None:
        """Share the list of broken images, so that each is reported once, and the decoded images.

        The data sets must have the same rows, fit and background.
        """
        if self._shared is not None:
            dataset.share(self._shared)
        self._shared = dataset

    def _process(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def _cpu_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
