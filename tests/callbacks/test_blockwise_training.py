"""BlockwiseTraining: the order of callbacks, resuming, fresh discriminators, rates and what it reports."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imagen_pl.callbacks.block_policies import Alternate, Block, BlockPolicy, FreezeOldBlocks
from imagen_pl.callbacks.blockwise_training import BlockwiseTraining, short
from imagen_pl.callbacks.progress import RunProgress
from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from tests.helpers.blockwise import (
    BEGIN,
    BLOCKS,
    END,
    GROUPS,
    Moved,
    block_states,
    gan,
    growing,
    newest,
    run,
    until,
)
from tests.helpers.training import AtEachBatch, Remember, SaveAt, adam, assert_same, sgd, train, weights_of


def test_order_of_callbacks_does_not_matter() -> None:
    moved = Moved()
    callbacks = [BlockwiseTraining(FreezeOldBlocks()), growing(), moved, until(48)]
    train(gan(), END, callbacks, max_steps=10**6)
    assert moved.by_clock == {clock: newest(clock) for clock in range(0, 48, 8)}


def test_train_all_blocks_equals_no_callback() -> None:
    states = []
    for turns in (None, BlockwiseTraining()):
        trained = run(gan(), turns)
        states.append((weights_of(trained), [o.state_dict() for o in trained.trainer.optimizers]))
    assert_same(*states)


@pytest.mark.parametrize(
    "policy",
    [FreezeOldBlocks(kimg=0.024, fresh_discriminator=True), Alternate(0.016, GROUPS)],
    ids=["newest", "groups"],
)
def test_resumed_equals_uninterrupted(policy: BlockPolicy, tmp_path: Path) -> None:
    """In the middle of a turn and of a fade, at a turn's end, and as a stage begins."""
    paths = {clock: tmp_path / f"{clock}.ckpt" for clock in (40, 48, 80)}
    moved = Moved()
    whole = run(gan(), BlockwiseTraining(policy), END, SaveAt(paths), moved)
    for clock, path in paths.items():
        resumed, again = gan(), Moved()
        run(resumed, BlockwiseTraining(policy), END, again, ckpt_path=path)
        assert_same(resumed.state_dict(), whole.state_dict())
        assert_same(*([o.state_dict() for o in s.trainer.optimizers] for s in (resumed, whole)))
        assert again.by_clock == {c: blocks for c, blocks in moved.by_clock.items() if c >= clock}


def test_fresh_discriminator_is_reset_to_initial_weights_at_each_stage() -> None:
    """Together with the heads of the loss terms, and without optimizer state."""
    trained = gan(generator_optimizer=sgd(0.0), discriminator_optimizer=adam())
    learnt = [*trained.discriminator.named_parameters(), *trained.losses.named_parameters()]
    first = {name: p.detach().clone() for name, p in learnt}
    anew: dict[int, bool] = {}

    def record(trained: TextToImageGAN, batch: Any) -> None:
        same_weights = all(torch.equal(p, first[name]) for name, p in learnt)
        anew[trained.images_seen] = same_weights and not trained.trainer.optimizers[0].state

    assert any(name.startswith("1.") for name, _ in learnt)  # the contrastive term's heads
    fresh = BlockwiseTraining(FreezeOldBlocks(fresh_discriminator=True))
    run(trained, fresh, END, AtEachBatch(before=record))
    assert [clock for clock, fresh in anew.items() if fresh] == list(BEGIN)


def test_learning_rate_factors_scale_only_their_blocks() -> None:
    """With plain SGD a step is as long as its learning rate, so the first step shows it."""
    factors = {"discriminator": 2.0, "discriminator.8": 0.25, "generator.8": 0.0, "generator.16": 0.5}
    ways: list[dict[str, Tensor]] = []
    logged = Remember()
    for turns in (None, BlockwiseTraining(learning_rate_factors=factors)):
        trained = gan(generator_optimizer=sgd(0.01), discriminator_optimizer=sgd(0.01))
        before = weights_of(trained)
        run(trained, turns, 8, logger=logged, log_every_n_steps=1)
        after = weights_of(trained)
        ways.append({name: after[name] - before[name] for name in before})
    plain, scaled = ways
    for name, way in plain.items():
        # The generator's gradient comes through a discriminator after another step.
        if name.startswith("discriminator."):
            factor = 0.25 if name.startswith("discriminator.grown.8.") else 2.0
            # Weights near 1 are rounded to 1e-7; a factor of 1 would be off by 100 times as much.
            torch.testing.assert_close(scaled[name], way * factor, atol=5e-7, rtol=1e-4)
    assert max(float(way.abs().max()) for way in plain.values()) > 1e-4
    moved = {name for name, way in scaled.items() if way.any()}
    assert any(name.startswith("generator.mapping.") for name in moved)
    assert not any(name.startswith("generator.grown.8.") for name in moved)
    groups = trained.trainer.optimizers[1].param_groups
    assert {g["block"]: g["lr"] for g in groups} == {"shared": 0.01, "8": 0.0, "16": 0.005, "32": 0.01}
    assert logged.column("train/d_lr") == {8: 0.01}  # before the factors


def test_blocks_frozen_by_their_network_stay_frozen() -> None:
    trained = gan()
    for parameter in trained.discriminator.blocks()[8].parameters():
        parameter.requires_grad_(False)
    before = weights_of(trained.discriminator.blocks()[8])
    run(trained, BlockwiseTraining(Alternate(0.016, [["generator"], ["discriminator"]])), 48)
    assert_same(weights_of(trained.discriminator.blocks()[8]), before)
    assert not any(p.requires_grad for p in trained.discriminator.blocks()[8].parameters())
    with pytest.raises(
        UserError,
        match=r"blockwise_training.policy names discriminator.8, which the networks do not have",
    ):
        run(trained, BlockwiseTraining(Alternate(0.016, [["discriminator.8"]])), 64)


def test_growth_can_reset_optimizer_state_of_frozen_blocks() -> None:
    moments: dict[int, set[Block]] = {}

    def record(trained: TextToImageGAN, batch: Any) -> None:
        moments[trained.images_seen] = {b for b, (_, found) in block_states(trained).items() if any(found)}

    turns = BlockwiseTraining(Alternate(0.016, [["discriminator"], ["generator"]]))
    callbacks = [growing(reset_optimizer_state=True), turns, AtEachBatch(before=record), until(80)]
    train(gan(), END, callbacks, max_steps=10**6)
    newest = {Block("discriminator", "16"), Block("generator", "16")}
    assert newest <= moments[56]
    assert not newest & moments[64]  # as the fade ends, in the discriminator's turn
    assert newest & moments[72] == {Block("discriminator", "16")}


def test_compiled_blocks_can_be_trained_and_frozen() -> None:
    """Blocks share their class's code: four blocks per network give up to 17 compiled versions."""
    with torch._dynamo.config.patch(recompile_limit=8):
        gan(compile=True)
        assert torch._dynamo.config.recompile_limit >= 64


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (
            BlockwiseTraining(Alternate(1, [["generator.64", "generator.8"]])),
            "blockwise_training.policy names generator.64, which the networks do not have: use "
            f"{', '.join(map(str, BLOCKS))}, or a whole network",
        ),
        (
            BlockwiseTraining(learning_rate_factors={"mapping": 0.1}),
            "blockwise_training.learning_rate_factors names mapping, which the networks do not have: use "
            "discriminator.",
        ),
        (
            BlockwiseTraining(FreezeOldBlocks(stem_resolution=4)),
            "blockwise_training.policy names generator.4, which the networks",
        ),
        (
            BlockwiseTraining(Alternate(1, [["generator.32"]])),
            "blockwise_training: no block is trained at 8 px: use at least one of discriminator.shared, "
            "discriminator.8, generator.shared, generator.8",
        ),
    ],
)
def test_unknown_block_names_raise_before_the_first_batch(turns: BlockwiseTraining, message: str) -> None:
    trained = gan()
    with pytest.raises(UserError) as error:
        run(trained, turns)
    assert str(error.value).startswith(message)
    assert trained.images_seen == 0


def test_progress_bar_and_log_name_the_trained_blocks() -> None:
    out, logged = io.StringIO(), Remember()
    bar = RunProgress(file=out, log_every_s=0.0)
    policy = FreezeOldBlocks(kimg=0.016)
    run(
        gan(),
        BlockwiseTraining(policy),
        84,
        bar,
        enable_progress_bar=True,
        logger=logged,
        log_every_n_steps=1,
    )
    lines = out.getvalue().splitlines()
    changes = [line for line in lines if " kimg  training " in line]
    assert changes == [
        "0.0 kimg  training discriminator.shared, discriminator.8, discriminator.16, generator.16",
        "0.0 kimg  training everything",
        "0.1 kimg  training discriminator.shared, discriminator.8, discriminator.16, discriminator.32, "
        "generator.32",
    ]
    shown = [line for line in lines if "training G 16, D ·" in line]
    assert len(shown) == 2
    assert "stage 2/3 · 16 px · fade 0% · training G 16, D · 0.0 kimg" in shown[0]
    assert not any("training" in line for line in lines[: lines.index(changes[0])])
    numbers = logged.column("blockwise_training/trained_parameters")
    assert numbers[32] > numbers[40]
    assert numbers[56] > numbers[40]


def test_trained_blocks_are_abbreviated() -> None:
    running = [Block("generator", "shared"), Block("generator", "8"), Block("discriminator", "8")]
    assert short(running, frozenset(running[:1])) == "G shared"
    assert short(running, frozenset(running[:2])) == "G"
    assert short(running, frozenset(running[1:])) == "G 8, D"


def test_negative_learning_rate_factors_raise() -> None:
    with pytest.raises(UserError, match=r"learning_rate_factors\.generator -1 must be 0 or more"):
        BlockwiseTraining(learning_rate_factors={"generator": -1})
