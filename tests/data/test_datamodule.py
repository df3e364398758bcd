"""CaptionedImages: the batches of training and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row
from imagen_pl.data.sources.webdataset import WebDatasetSource
from imagen_pl.errors import UserError
from imagen_pl.schedules import RunState, Stage, position
from imagen_pl.types import CaptionedBatch, Growth
from tests.helpers.image_files import Solid, WithSplits, module, validation_batches

STAGES = [Stage(8, kimg=0.02, batch_size=8), Stage(16, kimg=1, batch_size=4)]


class Looker(LightningModule):
    """Trains nothing, and records its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.run_state = RunState(Growth(8), stages=list(STAGES))
        self.shown: list[tuple[str, int, tuple[int, ...], tuple[str, ...]]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: CaptionedBatch, batch_idx: int) -> Tensor:
        self.show("train", batch)
        self.run_state.images_seen += len(batch)
        self.run_state.set_position(position(self.run_state.stages, self.run_state.images_seen))
        return self.weight.sum()

    def validation_step(self, batch: CaptionedBatch, batch_idx: int) -> None:
        self.show("val", batch)

    def show(self, kind: str, batch: CaptionedBatch) -> None:
        self.shown.append(
            (kind, batch.images.shape[-1], tuple(batch.indices.tolist()), tuple(batch.captions))
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["images_seen"] = self.run_state.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.run_state.images_seen = checkpoint["images_seen"]


def trainer(epochs: int, **settings: Any) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def fit(data: CaptionedImages, epochs: int, ckpt_path: str | None = None) -> tuple[Looker, Trainer]:
    looker, run = Looker(), trainer(epochs)
    data.follow(looker.run_state)
    run.fit(looker, data, ckpt_path=ckpt_path)
    return looker, run


def rows_of(batches: Iterator[CaptionedBatch]) -> list[int]:
    return [int(image[0, 0, 0]) for batch in batches for image in batch.images]


# ------------------------------------------------------------------ training


def test_images_captions_and_numbers_belong_together() -> None:
    data = module(Solid(10), val_fraction=0)
    batches = list(data.train_dataloader())
    assert [batch.indices.tolist() for batch in batches] == [list(range(i, i + 4)) for i in (0, 4, 8, 12)]
    for batch in batches:
        assert batch.images.shape == (4, 3, 8, 8)
        assert batch.images.dtype == torch.uint8
        assert batch.captions == [f"number {int(image[0, 0, 0])}" for image in batch.images]
        assert batch.text is None
    assert sorted(rows_of(iter(batches))[:10]) == list(range(10))


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_follows_epochs_stages_and_validation(workers: int) -> None:
    looker, _ = fit(module(WithSplits(16), num_workers=workers, epoch_kimg=0.032), epochs=2)
    train = [one for one in looker.shown if one[0] == "train"]
    assert [(resolution, len(numbers)) for _, resolution, numbers, _ in train] == [(8, 8)] * 3 + [
        (16, 4)
    ] * 10
    assert [n for _, _, numbers, _ in train for n in numbers] == list(range(64))
    kinds = [kind for kind, *_ in looker.shown]
    assert kinds == ["train"] * 5 + ["val"] + ["train"] * 8 + ["val"]
    assert [resolution for kind, resolution, *_ in looker.shown if kind == "val"] == [16, 16]


def test_workers_give_the_same_batches_as_the_main_process() -> None:
    shown = [
        fit(module(WithSplits(16), num_workers=n, caption_dropout=0.3), epochs=3)[0].shown for n in (0, 2)
    ]
    assert shown[0] == shown[1]


def test_validation_follows_growth() -> None:
    looker, _ = fit(module(WithSplits(16), epoch_kimg=0.008), epochs=4)
    assert [resolution for kind, resolution, *_ in looker.shown if kind == "val"] == [8, 8, 16, 16]


def test_resumed_run_continues_with_the_same_samples(tmp_path: Path) -> None:
    whole, _ = fit(module(WithSplits(16)), epochs=4)
    first, run = fit(module(WithSplits(16)), epochs=2)
    run.save_checkpoint(tmp_path / "run.ckpt")
    second, _ = fit(module(WithSplits(16)), epochs=4, ckpt_path=str(tmp_path / "run.ckpt"))
    assert first.shown + second.shown == whole.shown


def test_indivisible_batch_is_refused() -> None:
    data = module(Solid(10), val_fraction=0, batch_size=6)
    with pytest.raises(UserError, match=r"stages\[0\].batch_size 6 is not divisible by the 4 processes"):
        next(iter(data._batches(None, 0, 4)))


# ------------------------------------------------------------------ validation


def test_validation_rows_are_the_sources_own() -> None:
    data = module(WithSplits(16), val_batch_size=3)
    batches = list(data.val_dataloader())
    assert [batch.indices.tolist() for batch in batches] == [[0, 1], [2, 3]]
    assert rows_of(iter(batches)) == [0, 1, 2, 3]
    assert data.captions() == sorted(f"number {n}" for n in [*range(4), *range(6, 16)])
    assert rows_of(iter(validation_batches(module(WithSplits(16), val_split="test")))) == [4, 5]
    with pytest.raises(UserError, match="solid has no split composition: it has train, validation, test"):
        module(WithSplits(16), val_split="composition").setup()


def test_without_validation_there_is_no_loader() -> None:
    data = module(Solid(10), val_fraction=0)
    assert data.val_dataloader() == []
    looker, _ = fit(data, epochs=1)
    assert {kind for kind, *_ in looker.shown} == {"train"}


def test_val_samples_are_the_same_in_each_run() -> None:
    chosen = []
    for _ in range(2):
        data = module(Solid(100), val_fraction=0.5, val_samples=7)
        chosen.append([i for batch in validation_batches(data) for i in batch.indices.tolist()])
    assert len(chosen[0]) == 7
    assert chosen[0] == chosen[1] == sorted(chosen[0])


def test_train_samples_are_the_same_in_each_run_and_held_out_images_stay() -> None:
    def rows(**options: Any) -> tuple[list[str], list[str]]:
        data = module(Solid(100), val_fraction=0.1, **options)
        return sorted(data.some_captions()), data.held_out_captions()

    everything, held_out = rows()
    few, still_held_out = rows(train_samples=20)
    assert (len(everything), len(few)) == (90, 20)
    assert set(few) < set(everything)
    assert few == rows(train_samples=20)[0] != rows(train_samples=20, seed=1)[0]
    assert still_held_out == held_out
    assert rows(train_samples=1000)[0] == everything


def test_training_batches_have_only_the_train_samples() -> None:
    data = module(Solid(100), train_samples=12, epoch_kimg=0.12, batch_size=12)
    seen = {int(level) for batch in data.train_dataloader() for level in batch.images[:, 0, 0, 0]}
    assert len(seen) == 12


class Grouped(Solid):
    """Images 0 to 9 have no group; the others are one group, also among the validation images."""

    def load(self, problems: SkippedImages) -> dict[str, list[Row]]:
        rows = [
            replace(row, group="many" if row.place >= 10 else "") for row in super().load(problems)["train"]
        ]
        return {"train": rows, "validation": rows}


def test_balanced_groups_are_sampled_and_scored_like_single_images() -> None:
    data = module(Grouped(30), balance_groups=True, epoch_kimg=0.11, batch_size=11)
    seen = [int(level) for batch in data.train_dataloader() for level in batch.images[:, 0, 0, 0]]
    assert len(seen) == 110
    assert [seen.count(i) for i in range(10)] == [10] * 10
    assert len({level for level in seen if level >= 10}) > 3
    scored = [int(level) for batch in validation_batches(data) for level in batch.images[:, 0, 0, 0]]
    assert scored == list(range(11))
    every = module(Grouped(30), epoch_kimg=0.3, batch_size=30).train_dataloader()
    plain = [int(level) for batch in every for level in batch.images[:, 0, 0, 0]]
    assert [plain.count(i) for i in range(30)] == [10] * 30


def test_validation_caption_of_several_is_fixed() -> None:
    def captions() -> list[str]:
        data = module(Solid(60, captions=lambda i: [f"{i} one", f"{i} two"]), val_fraction=0.5)
        return [caption for batch in validation_batches(data) for caption in batch.captions]

    assert captions() == captions()
    assert {caption.split()[1] for caption in captions()} == {"one", "two"}


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 48}, "data.resolution 48 is not a power of two from 4 up"),
        ({"batch_size": 1}, "data.batch_size 1 is out of range"),
        ({"caption_dropout": 1.5}, "data.caption_dropout 1.5 is out of range"),
        ({"epoch_kimg": 0}, "data.epoch_kimg 0 is out of range"),
        ({"val_fraction": 0.9}, "data.val_fraction 0.9 is out of range"),
        ({"background": "glass"}, "background 'glass' is no colour"),
    ],
)
def test_settings_are_checked_at_once(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        module(Solid(10), **settings)


def test_overfit_batches_is_refused() -> None:
    with pytest.raises(UserError, match="overfit_batches does not work here"):
        trainer(1, overfit_batches=1).fit(Looker(), module(Solid(10)))


def test_default_is_no_workers_for_cached_data_and_at_most_8_otherwise() -> None:
    small = CaptionedImages(Solid(4), resolution=8)
    assert small.train_dataloader().num_workers == 0
    large = CaptionedImages(Solid(4), resolution=8, cache_mb=0)
    assert large._workers(in_memory=False) <= 8


def test_sources_are_known_by_their_short_names() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(CaptionedImages, "data")
    for name in ("FolderSource", "ParquetSource", "HuggingFaceSource", "CocoSource", "WebDatasetSource"):
        made = parser.instantiate(parser.parse_args([f"--data.source={name}", "--data.source.path=photos/"]))
        assert type(made.data.source).__name__ == name
        assert made.data.source.path == "photos/"
    emoji = parser.instantiate(
        parser.parse_args(["--data.source=EmojiSource", "--data.source.styles=[noto]"])
    )
    assert emoji.data.source.styles == ["noto"]


def parity(i: int) -> list[str]:
    return [f"{'even' if i % 2 == 0 else 'odd'}", f"number {i}"]


def grouped(captions: Callable[[int], Sequence[str]], **options: Any) -> CaptionedImages:
    """Forty images in batches of two groups of four."""
    source = Solid(40, captions=captions)
    data = module(source, batch_size=8, pictures_per_caption=4, val_fraction=0, **options)
    data.setup("fit")
    return data


def levels_of(batch: CaptionedBatch) -> list[int]:
    """The numbers of `Solid`'s images."""
    return batch.images[:, 0, 0, 0].tolist()


def test_pictures_of_one_caption_come_together() -> None:
    data = module(
        Solid(40, captions=parity), batch_size=8, pictures_per_caption=4, val_fraction=0, caption_dropout=0.3
    )
    data.setup("fit")
    captions: set[str] = set()
    for batch in data.train_dataloader():
        for first in range(2):
            column, levels = batch.captions[first::2], levels_of(batch)[first::2]
            captions.update(column)
            if column[0] in ("even", "odd", "") and len(set(column)) == 1:
                assert len(set(levels)) == 4
            for caption, level in zip(column, levels, strict=True):
                assert caption in ("", *parity(level))
    assert {"even", "odd", ""} <= captions


def test_dropout_takes_the_caption_of_a_whole_group() -> None:
    data = grouped(lambda i: parity(i)[:1], caption_dropout=0.5, epoch_kimg=0.4)
    columns = [batch.captions[first::2] for batch in data.train_dataloader() for first in range(2)]
    assert all(len(set(column)) == 1 for column in columns)
    assert 0.3 < sum(column[0] == "" for column in columns) / len(columns) < 0.7


def test_broken_picture_of_a_group_is_replaced_with_its_stand_in_s_caption() -> None:
    class Broken(Solid):
        def image(self, row: Row) -> bytes:
            return b"no image" if row.place == 4 else super().image(row)

    data = module(
        Broken(12, captions=lambda i: parity(i)[:1]), batch_size=8, pictures_per_caption=4, val_fraction=0,
        epoch_kimg=0.2,
    )  # fmt: skip
    data.setup("fit")
    for batch in data.train_dataloader():
        for caption, level in zip(batch.captions, levels_of(batch), strict=True):
            assert caption == parity(level)[0]


def test_groups_of_captions_need_images_in_any_order(tmp_path: Path) -> None:
    source = WebDatasetSource(str(tmp_path / "*.tar"))
    with pytest.raises(
        UserError, match=r"data.pictures_per_caption 2 needs images that can be read in any order"
    ):
        CaptionedImages(source, pictures_per_caption=2)


@pytest.mark.parametrize(
    ("pictures", "share", "message"), [(4, 1.5, "is out of range"), (1, 0.5, "needs groups of images")]
)
@pytest.mark.parametrize("name", ["own_captions", "shared_attributes"])
def test_shares_of_groups_are_checked(name: str, pictures: int, share: float, message: str) -> None:
    options: dict[str, Any] = {name: share}
    with pytest.raises(UserError, match=rf"data.{name} {share} {message}"):
        CaptionedImages(Solid(8), pictures_per_caption=pictures, **options)


def test_images_of_a_group_can_have_captions_of_their_own() -> None:
    data = grouped(parity, own_captions=1.0, epoch_kimg=0.2)
    of_one_parity = 0
    for batch in data.train_dataloader():
        for first in range(2):
            captions, levels = batch.captions[first::2], levels_of(batch)[first::2]
            assert captions != [captions[0]] * 4
            if captions == [f"number {level}" for level in levels]:
                of_one_parity += len({level % 2 for level in levels}) == 1
    assert of_one_parity > 10


def test_images_of_a_group_can_share_their_attributes() -> None:
    def captions(i: int) -> tuple[str, ...]:
        return f"number {i}", f"number {i}, {'odd' if i % 2 else 'even'}"

    data = grouped(captions, shared_attributes=1.0, epoch_kimg=0.08)
    for batch in data.train_dataloader():
        for first in range(2):
            levels = levels_of(batch)[first::2]
            assert batch.captions[first::2] == [captions(level)[1] for level in levels]
            assert len({level % 2 for level in levels}) == 1
