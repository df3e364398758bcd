"""What a source gives to a run: rows to train on and rows to score, with their captions and fingerprints."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only

from imagen_pl.data.fingerprint import add_rows, data_version
from imagen_pl.data.sample_processing import SampleProcessing
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Source, StreamSource
from imagen_pl.data.splits import (
    LoadedSplits,
    check_rows,
    evenly_spread,
    held_out,
    read_stream,
    smallest_side,
)
from imagen_pl.schedules import RunState, Stage
from imagen_pl.types import width_of

log = logging.getLogger(__name__)

_STREAMED = 10_000  # images of a stream whose captions are read


class CaptionedRows(LightningDataModule):
    """The rows, captions and fingerprints of a source; its subclass CaptionedImages makes batches of them.

    Attributes, set by the subclass:
        run_state: the run's clock and stages.
        only_stage: what `stages` gives where no growth is set up.
        train_processing, val_processing: how samples are made of the rows of training and of validation.
        source, train_samples, val_split, val_fraction, val_samples, min_size, balance_groups: as in
            CaptionedImages.
    """

    run_state: RunState
    only_stage: Stage
    train_processing: SampleProcessing
    val_processing: SampleProcessing
    source: Source | StreamSource
    train_samples: int | None
    val_split: str
    val_fraction: float
    val_samples: int | None
    min_size: int | None
    balance_groups: bool

    # ------------------------------------------------------------------ rows

    def setup(self, stage: str | None = None) -> None:
        """Read the source's index, so that what is wrong with it stops the run at once."""
        _ = self._loaded

    @property
    def is_stream(self) -> bool:
        return isinstance(self.source, StreamSource)

    @property
    def stages(self) -> list[Stage]:
        """The growth stages; one of `resolution` and `batch_size` where no growth is set up."""
        return self.run_state.stages or [self.only_stage]

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
        if self.train_samples is None or self.train_samples >= len(checked.train):
            return checked
        order = np.random.default_rng([self.train_processing.seed, len(checked.train)])
        chosen = np.sort(order.permutation(len(checked.train))[: self.train_samples])
        return replace(checked, train=[checked.train[i] for i in chosen])

    def _smallest(self) -> int:
        """Shortest side of an image that is used, px."""
        final = self._final_resolution()
        return smallest_side(min(final, width_of(final, self.val_processing.aspect_ratio)), self.min_size)

    def _final_resolution(self) -> int:
        return self.stages[-1].resolution

    # ------------------------------------------------------------------ captions

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
        if self.train_processing.caption_dropout:
            found.add("")
        return sorted(found)

    def some_captions(self) -> list[str]:
        """Captions of training, to see how they are worded: all, or the first 10,000 of a stream."""
        if not isinstance(self.source, StreamSource):
            return [caption for row in self._rows.train for caption in row.captions]
        problems = SkippedImages()
        read = (row for shard in self._loaded.shards for row, _ in self.source.read(shard, problems))
        return [caption for row in islice(read, _STREAMED) for caption in row.captions]

    def example_captions(self, number: int = 64) -> list[str]:
        """Captions of training from all over the data set; none of a stream, which would have to be read.

        Where there are no more different ones than `number`, as of a few domains, it is each of them once.
        """
        if self.is_stream:
            return []
        captions = self.some_captions()
        different = list(dict.fromkeys(captions))
        return different if len(different) <= number else evenly_spread(captions, number)

    def shared_captions(self, images: int, number: int) -> list[str]:
        """Captions that at least so many training images have, spread over the data set; none of a stream."""
        if self.is_stream:
            return []
        counts = Counter(self.some_captions())
        return evenly_spread([caption for caption, count in counts.items() if count >= images], number)

    def captions_to_watch(self, number: int = 16) -> list[str]:
        """What to draw while a model learns: half of training and half held out; of a stream the latter."""
        held_out = [row.captions[0] for row in self._rows.validation]
        trained = self.example_captions(number // 2 if held_out else number)
        return trained + evenly_spread(held_out, number - len(trained))

    def held_out_captions(self) -> list[str]:
        """The first caption of every held-out row; the images are not looked at."""
        return [row.captions[0] for row in self._loaded.validation if row.captions]

    # ------------------------------------------------------------------ fingerprints

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the validation images: what keeps statistics of real images apart.

        Of the rows' names and captions, the bytes of 16 images among them, and how images are fitted.
        """
        rows, processing = self._rows.validation, self.val_processing
        drawn = None if self.val_samples is None else (self.val_samples, processing.seed)
        fit, background, *more = processing.settings()
        settings = (len(rows), fit, background, drawn, self.balance_groups, *more)
        digest = hashlib.sha256(repr(settings).encode())
        add_rows(digest, self._rows.source, rows)
        return digest.hexdigest()[:16]

    @cached_property
    def training_fingerprint(self) -> str | None:
        """Changes with the training images; None where training and validation images are the same."""
        if self.val_split == "train":
            return None
        processing = self.val_processing
        settings = (self.version()["digest"], self._smallest(), *processing.settings())
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]

    def version(self) -> dict[str, Any]:
        """What is trained on and scored, with a digest that changes with it; see `data_version`."""
        return data_version(self.source, self._rows)
