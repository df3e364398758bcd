"""Blocks trained in turn: what stands still does so to the bit, and what learns is what the policy says."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from imagen_pl.callbacks.block_policies import (
    Alternate,
    Block,
    BlockPolicy,
    FreezeOldBlocks,
    ScheduleState,
    TrainAllBlocks,
)
from imagen_pl.callbacks.blockwise_training import BlockwiseTraining, short
from imagen_pl.callbacks.progress import RunProgress
from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import Relativistic
from imagen_pl.losses.gradient_penalties import R1
from imagen_pl.schedules import Stage, batches
from tests.helpers.tasks import tiny_matching
from tests.helpers.training import (
    AtEachBatch,
    Remember,
    SaveAt,
    adam,
    assert_same,
    sgd,
    tiny_data,
    tiny_gan,
    train,
    weights_of,
)

# 8 px to 32 images; 16 px to 80, fading until 64; then 32 px, fading until 96.
STAGES = (
    Stage(8, kimg=0.032, batch_size=8),
    Stage(16, kimg=0.048, batch_size=8, fade_kimg=0.032),
    Stage(32, kimg=1.0, batch_size=4, fade_kimg=0.016),
)
BEGIN = (0, 32, 80)
END = 104
BLOCKS = [Block(n, b) for n in ("discriminator", "generator") for b in ("shared", "8", "16", "32")]
# Of both networks, of blocks that grow later, and a whole network.
GROUPS = [["generator.shared", "discriminator.8"], ["generator.16", "generator.32"], ["discriminator"]]


def gan(**settings: Any) -> TextToImageGAN:
    """With all that could move a block that stands still: momentum, decay, penalties, terms with heads."""
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "generator": {"noise": True, "text_attention_at": [8], "mean_decay": 0.9},
        "discriminator": {"heads_at": [8, 16]},
        "adversarial": Relativistic(),
        "penalties": [R1(0.5, every=2)],
        "losses": tiny_matching(),
        "generator_optimizer": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
        "discriminator_optimizer": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
    }
    return tiny_gan(**{**defaults, **settings})


def growing(**settings: Any) -> ProgressiveGrowing:
    return ProgressiveGrowing(list(STAGES), **settings)


def until(clock: int) -> AtEachBatch:
    """Ends a training by its clock: Lightning counts steps, and a network that stands still takes none."""
    return AtEachBatch(after=lambda s, _: setattr(s.trainer, "should_stop", s.images_seen >= clock))


def run(
    trained: TextToImageGAN,
    turns: BlockwiseTraining | None,
    clock: int = END,
    *more: Callback,
    **settings: Any,
) -> TextToImageGAN:
    callbacks = [growing(), *([turns] if turns else []), *more, until(clock)]
    train(trained, END, callbacks, tiny_data(caption_dropout=0.2), max_steps=10**6, **settings)
    return trained


def block_states(trained: TextToImageGAN) -> dict[Block, list[Any]]:
    """Each block's weights and moments."""
    found = {}
    for optimizer in trained.trainer.optimizers:
        for group in optimizer.param_groups:
            weights = [p.detach().clone() for p in group["params"]]
            moments = [{k: v.clone() for k, v in optimizer.state.get(p, {}).items()} for p in group["params"]]
            found[Block(group["network"], group["block"])] = [weights, moments]
    return found


def same(a: Any, b: Any) -> bool:
    try:
        assert_same(a, b)
    except AssertionError:
        return False
    return True


class Moved(AtEachBatch):
    """Of each batch, by the clock at its start: the blocks whose weights or moments changed in it."""

    def __init__(self) -> None:
        super().__init__(self._look, self._compare)
        self.by_clock: dict[int, set[Block]] = {}
        self.average: dict[int, bool] = {}
        self._clock = 0
        self._states: dict[Block, list[Any]] = {}
        self._ema: dict[str, Tensor] = {}

    def _look(self, trained: TextToImageGAN, batch: Any) -> None:
        self._clock, self._states = trained.images_seen, block_states(trained)
        self._ema = weights_of(trained.ema)

    def _compare(self, trained: TextToImageGAN, batch: Any) -> None:
        now = block_states(trained)
        self.by_clock[self._clock] = {b for b in now if not same(self._states[b], now[b])}
        self.average[self._clock] = not same(self._ema, weights_of(trained.ema))


def stage(clock: int) -> int:
    return sum(clock >= begin for begin in BEGIN) - 1


def grown(clock: int) -> set[Block]:
    return {b for b in BLOCKS if (b.resolution or 0) <= (8, 16, 32)[stage(clock)]}


DISCRIMINATOR = {b for b in BLOCKS if b.network == "discriminator"}


def newest(clock: int, kimg: float | None = None) -> set[Block]:
    over = kimg is not None and clock - BEGIN[stage(clock)] >= kimg * 1000
    if stage(clock) == 0 or over:
        return grown(clock)
    return grown(clock) & DISCRIMINATOR | {Block("generator", str((8, 16, 32)[stage(clock)]))}


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
    assert all(parameter.requires_grad for parameter in trained.generator.parameters())  # let go at the end
    counts = logged.column("blockwise_training/generator_blocks")
    if isinstance(policy, TrainAllBlocks):
        assert counts == {}
    else:
        assert counts == {c + s: len(expected(c) - DISCRIMINATOR) for c, s in sizes.items()}


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
    """With what the terms learn beside it, and without moments."""
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
    """With plain SGD a step is as long as its rate, so the first step's length tells it."""
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
        # The generator's gradient comes through a discriminator that took another step.
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


def test_blocks_from_init_from_are_frozen_from_the_start() -> None:
    now = ScheduleState(0, 0, 32, None)
    running = BLOCKS[3:]
    assert list(FreezeOldBlocks(stem_resolution=8).learners(running, now)) == [
        *(Block("discriminator", "32"), Block("generator", "16"), Block("generator", "32"))
    ]
    assert list(FreezeOldBlocks().learners(running, now)) == running


def test_blocks_of_skipped_resolutions_count_as_new() -> None:
    running = [Block("generator", name) for name in ("shared", "8", "16", "32")]
    learn = FreezeOldBlocks().learners(running, ScheduleState(200, 160, 32, before=8))
    assert [str(b) for b in learn] == ["generator.16", "generator.32"]


def test_blocks_frozen_by_their_network_stay_frozen() -> None:
    trained = gan()
    for parameter in trained.discriminator.blocks()[8].parameters():
        parameter.requires_grad_(False)
    before = weights_of(trained.discriminator.blocks()[8])
    run(trained, BlockwiseTraining(Alternate(0.016, [["generator"], ["discriminator"]])), 48)
    assert_same(weights_of(trained.discriminator.blocks()[8]), before)
    assert not any(p.requires_grad for p in trained.discriminator.blocks()[8].parameters())
    with pytest.raises(
        UserError, match=r"blockwise_training.policy names discriminator.8, which the networks do not have"
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
    """Blocks share their class's code: of four a network, up to 17 versions were compiled in turns, not 8."""
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
            "blockwise_training: no block is trained at 8 px: name one of discriminator.shared, "
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: BlockwiseTraining(learning_rate_factors={"generator": -1}),
            "generator -1 must be 0 or more",
        ),
        (lambda: FreezeOldBlocks(kimg=0), "kimg 0 must be more than 0"),
        (lambda: Alternate(kimg=0), "kimg 0 must be 0.001 or more"),
        (lambda: Alternate(kimg=1, groups=[[]]), "groups must name at least one block each"),
        (lambda: Alternate(kimg=1, groups=[]), "groups must name at least one block each"),
    ],
)
def test_invalid_settings_raise(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


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
    numbers = logged.column("blockwise_training/learning_parameters")
    assert numbers[32] > numbers[40]
    assert numbers[56] > numbers[40]


def test_trained_blocks_are_abbreviated() -> None:
    running = [Block("generator", "shared"), Block("generator", "8"), Block("discriminator", "8")]
    assert short(running, frozenset(running[:1])) == "G shared"
    assert short(running, frozenset(running[:2])) == "G"
    assert short(running, frozenset(running[1:])) == "G 8, D"
