"""Runs whose blocks are trained in turn, and what changes in each of their batches."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from imagen_pl.callbacks.block_policies import Block
from imagen_pl.callbacks.blockwise_training import BlockwiseTraining
from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import Relativistic
from imagen_pl.losses.gradient_penalties import R1
from imagen_pl.schedules import Stage
from tests.helpers.tasks import tiny_matching
from tests.helpers.training import AtEachBatch, assert_same, tiny_data, tiny_gan, train, weights_of

# 8 px to 32 images; 16 px to 80, fading until 64; then 32 px, fading until 96.
STAGES = (
    Stage(8, kimg=0.032, batch_size=8),
    Stage(16, kimg=0.048, batch_size=8, fade_kimg=0.032),
    Stage(32, kimg=1.0, batch_size=4, fade_kimg=0.016),
)


BEGIN = (0, 32, 80)


END = 104


BLOCKS = [Block(n, b) for n in ("discriminator", "generator") for b in ("shared", "8", "16", "32")]


# Blocks of both networks, blocks that grow later, and a whole network.
GROUPS = [["generator.shared", "discriminator.8"], ["generator.16", "generator.32"], ["discriminator"]]


def gan(**settings: Any) -> TextToImageGAN:
    """With everything that could move a frozen block: momentum, decay, penalties, terms with heads."""
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
    """Ends training by the clock: Lightning counts steps, and a frozen network takes none."""
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
    """Each block's weights and optimizer state."""
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
    """For each batch, by the clock at its start: the blocks whose weights or optimizer state changed."""

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
