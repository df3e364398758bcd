"""The order of the data is a pure function of the seed and the clock."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from imagen_pl.data.batch_samplers import (
    BatchPlan,
    CaptionGroups,
    GroupedShuffle,
    Shuffle,
    TrainingBatches,
    ValidationBatches,
    attributes_of,
    uniform,
)
from imagen_pl.errors import UserError
from imagen_pl.schedules import Stage

STAGES = [Stage(8, kimg=0.05, batch_size=12), Stage(16, kimg=1, batch_size=6)]


def plans(
    clock: int, rank: int = 0, world_size: int = 1, rows: int = 10, epoch: int = 100
) -> list[BatchPlan]:
    order = Shuffle(rows, seed=3)
    return list(TrainingBatches(order, lambda: STAGES, lambda: clock, epoch, rank, world_size))


def samples(batches: list[BatchPlan]) -> list[tuple[int, int, int]]:
    return [
        (int(number), int(row), plan.resolution)
        for plan in batches
        for number, row in zip(plan.numbers, plan.rows, strict=True)  # type: ignore[arg-type]
    ]


def test_each_pass_is_another_permutation_of_all_rows() -> None:
    rows = Shuffle(10, seed=3)(np.arange(30))
    passes = [rows[i : i + 10].tolist() for i in (0, 10, 20)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert Shuffle(10, seed=3)(np.arange(25, 30)).tolist() == rows[25:].tolist()
    assert Shuffle(10, seed=4)(np.arange(30)).tolist() != rows.tolist()


def test_each_group_occurs_once_a_pass_with_uniformly_drawn_rows() -> None:
    groups = [[0], [1, 2, 3], [4], [5, 6]]
    group_of = {row: i for i, group in enumerate(groups) for row in group}
    numbers = np.arange(4 * 600)
    rows = GroupedShuffle(groups, seed=3)(numbers)
    passes = [[group_of[row] for row in rows[i : i + 4].tolist()] for i in range(0, len(rows), 4)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in passes)
    counts = np.bincount(rows)
    assert counts[[0, 4]].tolist() == [600, 600]
    assert all(abs(count - 200) < 40 for count in counts[1:4])
    assert all(abs(count - 300) < 50 for count in counts[5:])
    # A resume goes on with the same rows.
    assert GroupedShuffle(groups, seed=3)(numbers[1000:]).tolist() == rows[1000:].tolist()


def test_groups_of_one_row_are_the_plain_order() -> None:
    numbers = np.arange(40)
    alone = GroupedShuffle([[i] for i in range(10)], seed=3)(numbers)
    assert alone.tolist() == Shuffle(10, seed=3)(numbers).tolist()


def test_order_equals_its_definition() -> None:
    expected = [np.random.default_rng([3, n // 10]).permutation(10)[n % 10] for n in range(40)]
    assert Shuffle(10, seed=3)(np.arange(40)).tolist() == expected


def test_batches_follow_the_stages_and_end_at_the_epoch() -> None:
    first = plans(0)
    assert [(len(p.numbers), p.resolution) for p in first] == [(12, 8)] * 5 + [(6, 16)] * 7
    assert [n for n, _, _ in samples(first)] == list(range(102))  # 100 is in the middle of a batch
    assert plans(102)[0].numbers[0] == 102
    assert plans(102)[-1].numbers[-1] == 203
    assert plans(100)[-1].numbers[-1] >= 199  # at a multiple itself, a whole epoch lies ahead


def test_resumed_order_equals_the_uninterrupted_one() -> None:
    whole = plans(0)
    assert samples(plans(int(whole[4].numbers[0]))) == samples(whole[4:])


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_together_get_the_samples_of_one_process(world_size: int) -> None:
    parts = [plans(0, rank, world_size) for rank in range(world_size)]
    together = [samples([part[i] for part in parts]) for i in range(len(parts[0]))]
    assert together == [samples([plan]) for plan in plans(0)]


def test_indivisible_batch_names_both_numbers() -> None:
    with pytest.raises(UserError, match=r"stages\[0\].batch_size 12 is not divisible by the 5 processes"):
        plans(0, 0, 5)


def test_training_batches_have_no_length() -> None:
    with pytest.raises(TypeError):
        len(TrainingBatches(None, lambda: STAGES, lambda: 0, 100))


def test_stream_plans_carry_no_rows() -> None:
    plan = next(iter(TrainingBatches(None, lambda: STAGES, lambda: 24, 100)))
    assert plan.rows is None
    assert plan.numbers.tolist() == list(range(24, 36))


@pytest.mark.parametrize(
    ("rows", "world_size", "batch_size"), [(10, 1, 4), (10, 2, 4), (33, 2, 8), (7, 3, 64)]
)
def test_validation_takes_every_row_once(rows: int, world_size: int, batch_size: int) -> None:
    parts = [
        ValidationBatches(np.arange(rows) * 2, batch_size, lambda: 32, rank, world_size)
        for rank in range(world_size)
    ]
    found = [[plan.rows.tolist() for plan in part] for part in parts]  # type: ignore[union-attr]
    flat = [row for part in found for batch in part for row in batch]
    assert sorted(flat) == (np.arange(rows) * 2).tolist()
    assert all(batch[0] // 2 % world_size == rank for rank, part in enumerate(found) for batch in part)
    assert len({len(part) for part in parts}) == 1
    assert max(len(batch) for part in found for batch in part) <= batch_size
    assert [len(part) for part in parts] == [len(part) for part in found]


def test_validation_reads_the_resolution_when_it_starts() -> None:
    resolution = 8
    batches = ValidationBatches(np.arange(4), 2, lambda: resolution)
    assert [plan.resolution for plan in batches] == [8, 8]
    resolution = 32
    assert [plan.resolution for plan in batches] == [32, 32]


def test_uniform_depends_on_seed_purpose_and_number_alone() -> None:
    numbers = np.arange(10_000)
    draws = uniform(0, 1, numbers)
    assert 0 <= draws.min() < 0.001
    assert 0.999 < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03
    assert uniform(0, 1, numbers[500:600]).tolist() == draws[500:600].tolist()
    for other in (uniform(1, 1, numbers), uniform(0, 2, numbers), uniform(-1, 1, numbers)):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.03


# Ten rows of "bell", six of "star", and captions of one row each.
CAPTIONS = [("bell", f"bell, set {i}") for i in range(10)] + [("star",) for _ in range(6)]
CAPTIONS += [(f"thing {i}",) for i in range(8)]


def grouped(pictures: int = 4, seed: int = 3) -> CaptionGroups:
    return CaptionGroups(Shuffle(len(CAPTIONS), seed), CAPTIONS, pictures, seed)


def test_pictures_that_share_a_caption_are_the_columns_of_the_batch() -> None:
    order, whole, seen = grouped(), 0, set()
    for start in range(0, 12 * 50, 12):
        numbers = np.arange(start, start + 12)
        rows, shared = order(numbers)
        assert len(rows) == len(shared.captions) == 12
        assert all(caption in CAPTIONS[row] for row, caption in zip(rows, shared.captions, strict=True))
        for first in range(3):
            column, captions = rows[first::3], shared.captions[first::3]
            if captions[0] in ("bell", "star"):
                whole += 1
                assert captions == [captions[0]] * 4
                assert len(set(column.tolist())) == 4, "different pictures"
                assert (shared.numbers[first::3] == start + first).all()
                seen.update(column.tolist())
            else:  # the rows of the plain order, each with a caption of its own
                assert column.tolist() == Shuffle(len(CAPTIONS), 3)(numbers[first::3]).tolist()
                assert shared.numbers[first::3].tolist() == numbers[first::3].tolist()
    assert whole > 50
    assert seen == set(range(16)), "every picture of both captions"


def test_pictures_of_a_group_can_have_captions_of_their_own() -> None:
    order = CaptionGroups(Shuffle(len(CAPTIONS), 3), CAPTIONS, 4, 3, own_captions=1.0)
    of_bells = 0
    for start in range(0, 12 * 50, 12):
        numbers = np.arange(start, start + 12)
        rows, shared = order(numbers)
        same_rows, whole = grouped()(numbers)
        assert rows.tolist() == same_rows.tolist()
        for first in range(3):
            captions, column = shared.captions[first::3], rows[first::3].tolist()
            if whole.captions[first::3] == ["bell"] * 4:
                of_bells += 1
                assert captions == [f"bell, set {row}" for row in column]
                assert shared.numbers[first::3].tolist() == numbers[first::3].tolist()
            else:  # the rows of "star" have no other caption
                assert captions == whole.captions[first::3]
    assert of_bells > 20


def test_share_of_groups_with_captions_of_their_own() -> None:
    def groups_that_share(own_captions: float) -> int:
        order = CaptionGroups(Shuffle(10, 3), CAPTIONS[:10], 10, 3, own_captions)
        batches = (order(np.arange(start, start + 10))[1].captions for start in range(0, 20_000, 10))
        return sum(captions == ["bell"] * 10 for captions in batches)

    assert 0.7 < groups_that_share(0.25) / groups_that_share(0.0) < 0.8


ICONS: list[tuple[str, ...]] = [
    *((f"thing {i}", f"thing {i}, line", f"thing {i}, Set {i % 3}, line") for i in range(24)),
    *((f"thing {i}", f"thing {i}, Rare, line") for i in range(2)),
    ("no attributes",),
]


def test_pictures_of_a_group_can_share_their_attributes() -> None:
    order = CaptionGroups(Shuffle(len(ICONS), 3), ICONS, 4, 3, shared_attributes=1.0)
    of_sets: Counter[str] = Counter()
    for start in range(0, 12 * 50, 12):
        rows, shared = order(np.arange(start, start + 12))
        assert all(caption in ICONS[row] for row, caption in zip(rows, shared.captions, strict=True))
        for first in range(3):
            captions, column = shared.captions[first::3], rows[first::3].tolist()
            if column[0] < 24:
                assert len(set(column)) == 4, "different pictures"
                (same,) = {attributes_of(caption) for caption in captions}
                of_sets[same] += 1
    assert len(of_sets) == 3, "not the rare set, nor the pictures without attributes"
    assert sum(of_sets.values()) > 100


def test_share_of_groups_with_shared_attributes() -> None:
    order = CaptionGroups(Shuffle(24, 3), ICONS[:24], 4, 3, shared_attributes=0.25)
    batches = (order(np.arange(start, start + 4))[1].captions for start in range(0, 8000, 4))
    alike = sum(len(set(map(attributes_of, each))) == 1 and len(set(each)) == 4 for each in batches)
    assert 0.22 < alike / 2000 < 0.3


def test_grouped_batches_are_a_function_of_seed_and_number() -> None:
    numbers = np.arange(120, 132)
    rows, shared = grouped()(numbers)
    again, same = grouped()(numbers)
    others, _ = grouped(seed=4)(numbers)
    assert rows.tolist() == again.tolist() != others.tolist()
    assert shared.captions == same.captions


def test_size_of_a_batch_must_be_a_multiple_of_the_pictures_per_caption() -> None:
    with pytest.raises(UserError, match=r"data.pictures_per_caption 4 does not divide the 6 images"):
        list(TrainingBatches(grouped(), lambda: STAGES, lambda: 60, 100))
