"""The table of scores: what a run cost, and pictures of other programs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from benchmarks import protocol, quality
from imagen_pl import load
from imagen_pl.errors import UserError
from tests.helpers.runs import Tiny


def test_costs_of_a_run_are_read_from_its_folder(trained: Tiny) -> None:
    model = load(trained.run, "cpu")
    took = quality.training_cost(trained.run, model)
    held = torch.load(trained.run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    sizes = {
        kind: sum(held[n].numel() for n in held if n.startswith(f"{kind}."))
        for kind in ("discriminator", "ema")
    }
    assert took.discriminator_parameters == sizes["discriminator"]
    assert took.generator_parameters is not None
    assert took.generator_parameters <= sizes["ema"]  # buffers are held there too
    assert took.images_seen == model.description["images_seen"] > 0
    assert took.images_per_second is not None
    assert took.images_per_second > 0
    assert took.peak_memory_gb is not None
    assert 0.1 < took.peak_memory_gb < 100


def test_costs_of_a_release_are_unknown(trained: Tiny) -> None:
    folder = load(trained.run, "cpu").save("release")
    took = quality.training_cost(folder, load(folder, "cpu"))
    assert took.generator_parameters is not None
    assert took.generator_parameters > 0
    assert took.discriminator_parameters is took.images_per_second is took.peak_memory_gb is None


def test_known_costs_are_in_the_table() -> None:
    took = quality.TrainingCost(61_280, 127.96, 3_500_000, 1_600_000, 1.04)
    assert quality.cost(took) == "128.0 | 61,280 | 3.50 M + 1.60 M | 1.0 GiB"
    assert quality.cost(quality.TrainingCost(generator_parameters=3_500_000)) == " |  | 3.50 M | "
    assert quality.cost(None).count("|") == 3


def test_images_of_other_programs_are_read_in_protocol_order(tmp_path: Path) -> None:
    pictures = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    np.save(tmp_path / quality.PICTURES, pictures)

    def reference(seed: int) -> protocol.ReferenceSet:
        return cast(protocol.ReferenceSet, SimpleNamespace(asked=[5, 6, 7], seed=seed, resolution=4))

    drawn = quality.read_drawn(tmp_path, reference(seed=0))
    assert np.array_equal(drawn.permute(0, 2, 3, 1).numpy(), pictures)
    with pytest.raises(UserError, match="holds 3 pictures, for other captions than --seed 1 asks"):
        quality.read_drawn(tmp_path, reference(seed=1))


def test_sheet_has_the_same_captions_for_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 40  # training rows, as many test rows, and one composition row between them
    splits = ["train"] * count + ["composition"] + ["test"] * count
    pictures = [SimpleNamespace(split=split, caption=f"{split} {k}") for k, split in enumerate(splits)]
    images = torch.arange(len(splits), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    reference = SimpleNamespace(pictures=pictures, images=images, asked=list(range(len(splits))))
    seen: list[Any] = []
    monkeypatch.setattr(quality, "labelled_grid", lambda *shown, columns: seen.append((*shown, columns)))
    quality.sheet(cast(protocol.ReferenceSet, reference), {"runs/a": images + 100})
    ((cells, labels, columns),) = seen
    assert (len(cells), columns) == (32, 16)
    real, drawn = ([cell.getpixel((0, 0))[0] for cell in part] for part in (cells[:16], cells[16:]))
    assert [value + 100 for value in real] == drawn
    assert [labels[k] for k in range(16)] == [pictures[value].caption for value in real]
    assert {pictures[value].split for value in real[:8]} == {"train"}
    assert {pictures[value].split for value in real[8:]} == {"test"}
    assert labels[16] == "runs/a"


def test_nearest_training_caption_baseline_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test subject k has the caption vector and nearly the image of training subject 99 - k of its style."""
    count = 100
    vectors = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    features = torch.randn(count, 8, generator=torch.Generator().manual_seed(1))
    pictures: list[protocol.Picture] = []
    words, images = [], []
    for split, order in (("train", range(count)), ("test", reversed(range(count))), ("train", range(count))):
        style = "noto" if len(pictures) < 2 * count else "fluent"  # the last hundred must not be used
        for place in order:
            subject = f"{split} {len(pictures)}"
            pictures.append(
                protocol.Picture(f"{subject}, {style} style", subject, style, split, len(pictures))
            )
            words.append(vectors[place])
            images.append(features[place] if style == "noto" else -features[place])
    monkeypatch.setattr(protocol, "encode", lambda captions: torch.stack(words))
    blank = torch.zeros(len(pictures), 3, 2, 2, dtype=torch.uint8)
    asked = list(range(50, 2 * count))  # some training captions are included too
    scored = protocol.score_nearest_caption(
        protocol.ReferenceSet(2, 0, pictures, blank, torch.stack(images), asked)
    )

    assert (scored.images, scored.fd, scored.retrieval) == (100, None, None)
    assert scored.test_retrieval is not None
    assert scored.test_retrieval.top1 == 1
    assert scored.test_shuffled is not None
    assert scored.test_shuffled.top1 < 0.1
