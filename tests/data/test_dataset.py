"""RowImages: captions, flips and text features of the batches, and the cache of decoded images."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from PIL import Image

from imagen_pl.data.sources.base import Row
from imagen_pl.data.sources.folder import FolderSource
from imagen_pl.schedules import Stage
from imagen_pl.types import CaptionedBatch, TextFeatures
from tests.helpers.image_files import Solid, module, validation_batches, write_photos


class Lengths:
    """A lookup that pickles."""

    def __call__(self, captions: list[str]) -> TextFeatures:
        pooled = torch.tensor([[float(len(caption))] for caption in captions])
        return TextFeatures(pooled[:, None], torch.ones(len(captions), 1, dtype=torch.bool), pooled)


def test_cached_images_equal_decoded_ones() -> None:
    def served(cache_mb: float) -> list[CaptionedBatch]:
        data = module(Solid(10), val_fraction=0, cache_mb=cache_mb, horizontal_flip=True)
        loader = data.train_dataloader()
        return [batch for _ in range(2) for batch in loader]

    for cached, fresh in zip(served(1), served(0), strict=True):
        assert torch.equal(cached.images, fresh.images)
        assert cached.captions == fresh.captions
    source = Solid(10)
    opened: list[str] = []
    original = source.image

    def image(row: Row) -> bytes:
        opened.append(row.name)
        return original(row)

    source.image = image  # type: ignore[method-assign]
    data = module(source, val_fraction=0)
    data.captions()
    opened.clear()  # of the check of headers
    loader = data.train_dataloader()
    for _ in range(3):
        list(loader)
    assert len(opened) == 10


class CountsOpenings(Solid):
    """Appends a line to a file for every opened image, in any process."""

    def __init__(self, count: int, log: Path) -> None:
        super().__init__(count)
        self.log = log

    def image(self, row: Row) -> bytes:
        with self.log.open("a") as file:
            file.write(f"{row.name}\n")
        return super().image(row)


def test_workers_share_the_decoded_images(tmp_path: Path) -> None:
    """At both stages: without sharing, each of the two workers would decode nearly all of the 16 images."""
    data = module(CountsOpenings(16, tmp_path / "log"), val_fraction=0, num_workers=2, epoch_kimg=0.128)
    data.run_state.stages = [Stage(8, 0.128, 4), Stage(16, 1, 4)]
    loader = data.train_dataloader()
    assert len(data._rows.train) == 16
    for epoch in range(2):
        (tmp_path / "log").write_text("")
        data.run_state.images_seen = 128 * epoch
        for batch in loader:
            levels = batch.images[:, 0, 0, 0].tolist()
            assert [f"number {level}" for level in levels] == batch.captions
        # Between two passes, two workers may open the same image at the same time.
        assert 16 <= len((tmp_path / "log").read_text().splitlines()) <= 24


def test_cache_holds_at_most_cache_mb() -> None:
    data = module(Solid(10), val_fraction=0, cache_mb=10 * 3 * 8 * 8 / 2**20)
    loader = data.train_dataloader()
    list(loader)
    assert list(loader.dataset._cache) == [(3, 8, 8)]  # type: ignore[attr-defined]
    data.run_state.stages = [Stage(16, 1, 4)]
    list(loader)
    assert list(loader.dataset._cache) == [(3, 8, 8)]  # type: ignore[attr-defined]


def test_caption_dropout_and_flips_are_functions_of_the_number() -> None:
    def served() -> list[CaptionedBatch]:
        data = module(Solid(10), val_fraction=0, caption_dropout=0.25, epoch_kimg=1, seed=5)
        return list(data.train_dataloader())

    captions = [caption for batch in served() for caption in batch.captions]
    assert captions == [caption for batch in served() for caption in batch.captions]
    assert 200 < captions.count("") < 300
    assert "" in (module(Solid(10), caption_dropout=0.25).captions() or [])
    assert "" not in (module(Solid(10)).captions() or [])


def test_half_of_the_images_are_flipped_on_request(tmp_path: Path) -> None:
    half = Image.new("RGB", (8, 8), "black")
    half.paste("white", (4, 0, 8, 8))
    for i in range(4):
        half.save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("right half")
    for flip, least, most in ((False, 0, 0), (True, 80, 120)):
        data = module(
            FolderSource(str(tmp_path)), horizontal_flip=flip, val_fraction=0, epoch_kimg=0.2, batch_size=8
        )
        left = sum(int(image[0, 0, 0] == 255) for b in data.train_dataloader() for image in b.images)
        assert least <= left <= most


def test_batches_contain_text_features() -> None:
    data = module(Solid(10), val_fraction=0.2)
    data.run_state.text_lookup = Lengths()
    for loader in (data.train_dataloader(), validation_batches(data)):
        for batch in loader:
            assert isinstance(batch.text, TextFeatures)
            assert batch.text.pooled[:, 0].tolist() == [float(len(caption)) for caption in batch.captions]


def test_data_sets_pickle_for_workers_that_are_spawned(tmp_path: Path) -> None:
    data = module(FolderSource(str(write_photos(tmp_path))), val_fraction=0)
    data.run_state.text_lookup = Lengths()
    loader = data.train_dataloader()
    (plan, *_) = loader.sampler
    again = pickle.loads(pickle.dumps(loader.dataset))
    assert torch.equal(again[plan].images, loader.dataset[plan].images)
