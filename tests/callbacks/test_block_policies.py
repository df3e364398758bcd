"""Policies: which blocks they train at each batch, and which they freeze."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from imagen_pl.callbacks.block_policies import (
    Alternate,
    Block,
    BlockPolicy,
    FreezeOldBlocks,
    ScheduleState,
    TrainAllBlocks,
)
from imagen_pl.callbacks.blockwise_training import BlockwiseTraining
from imagen_pl.schedules import batches
from tests.helpers.blockwise import (
    BLOCKS,
    DISCRIMINATOR,
    END,
    GROUPS,
    STAGES,
    Moved,
    gan,
    grown,
    newest,
    run,
    stage,
)
from tests.helpers.training import Remember


def in_groups(clock: int) -> set[Block]:
    groups = [{b for b in grown(clock) if {str(b), b.network} & set(group)} for group in GROUPS]
    there = [group for group in groups if group]
    return there[clock // 16 % len(there)]


def one_by_one(clock: int) -> set[Block]:
    names = ["shared", "8", "16", "32"][: stage(clock) + 2]
    order = [Block(network, name) for name in names for network in ("generator", "discriminator")]
    return {order[clock // 16 % len(order)]}


POLICIES: list[tuple[BlockPolicy, Any]] = [
    (TrainAllBlocks(), grown),
    (FreezeOldBlocks(), newest),
    (FreezeOldBlocks(kimg=0.016), partial(newest, kimg=0.016)),
    (Alternate(0.016, GROUPS), in_groups),
    (Alternate(0.016), one_by_one),
]


IDS = ["all", "newest", "newest for a while", "groups in turn", "every block in turn"]


@pytest.mark.parametrize(("policy", "expected"), POLICIES, ids=IDS)
def test_frozen_blocks_do_not_change_and_all_others_train(policy: BlockPolicy, expected: Any) -> None:
    """At every batch, through stages and fades."""
    moved, logged = Moved(), Remember()
    trained = run(gan(), BlockwiseTraining(policy), END, moved, logger=logged, log_every_n_steps=1)
    sizes = {clock: here.stage.batch_size for clock, here in batches(STAGES, 0, END)}
    assert list(moved.by_clock) == list(sizes)
    for clock, blocks in moved.by_clock.items():
        assert blocks == expected(clock), (clock, sorted(map(str, blocks)))
    assert all(moved.average.values())
    assert all(parameter.requires_grad for parameter in trained.generator.parameters())  # unfrozen at the end
    counts = logged.column("blockwise_training/generator_blocks")
    if isinstance(policy, TrainAllBlocks):
        assert counts == {}
    else:
        assert counts == {c + s: len(expected(c) - DISCRIMINATOR) for c, s in sizes.items()}


def test_blocks_from_init_from_are_frozen_from_the_start() -> None:
    now = ScheduleState(0, 0, 32, None)
    running = BLOCKS[3:]
    assert list(FreezeOldBlocks(stem_resolution=8).blocks_to_train(running, now)) == [
        *(Block("discriminator", "32"), Block("generator", "16"), Block("generator", "32"))
    ]
    assert list(FreezeOldBlocks().blocks_to_train(running, now)) == running


def test_blocks_of_skipped_resolutions_count_as_new() -> None:
    running = [Block("generator", name) for name in ("shared", "8", "16", "32")]
    learn = FreezeOldBlocks().blocks_to_train(running, ScheduleState(200, 160, 32, before=8))
    assert [str(b) for b in learn] == ["generator.16", "generator.32"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FreezeOldBlocks(kimg=0), "kimg 0 must be more than 0"),
        (lambda: Alternate(kimg=0), "kimg 0 must be 0.001 or more"),
        (lambda: Alternate(kimg=1, groups=[[]]), "each group must name at least one block"),
        (lambda: Alternate(kimg=1, groups=[]), "each group must name at least one block"),
    ],
)
def test_invalid_settings_raise(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
