"""Trains some blocks while others are frozen, each with its own learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor, nn

from imagen_pl.callbacks.base import callbacks_of, gan_of
from imagen_pl.callbacks.block_policies import Block, BlockPolicy, ScheduleState, TrainAllBlocks
from imagen_pl.callbacks.progressive_growing import ProgressiveGrowing
from imagen_pl.errors import UserError
from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.schedules import begin_of, position


class BlockwiseTraining(Callback):
    """Trains some blocks of the networks while the others are frozen.

    Frozen blocks keep their weights and optimizer state to the bit. The generator's moving average is still
    updated, and so are running statistics such as the mean style. Loss heads that are trained in the
    discriminator step belong to discriminator.shared. A network whose blocks are all frozen takes no
    optimizer step for `trainer.max_steps` to count: limit such a run by max_time or max_epochs.

    Args:
        policy: decides which blocks are trained when: TrainAllBlocks, FreezeOldBlocks, Alternate, or your own
            class; null trains all blocks.
        learning_rate_factors: factor on the learning rate of a block, for example {generator.shared: 0.1,
            generator.8: 0.5}, or of a whole network, for example {generator: 0.5}; a block's factor replaces
            its network's. 0 freezes it.
    """

    def __init__(
        self, policy: BlockPolicy | None = None, learning_rate_factors: dict[str, float] | None = None
    ) -> None:
        self.policy = policy if policy is not None else TrainAllBlocks()
        self.learning_rate_factors = dict(learning_rate_factors or {})
        for name, factor in self.learning_rate_factors.items():
            if factor < 0:
                raise UserError(f"blockwise_training.learning_rate_factors.{name} {factor} must be 0 or more")
        self._blocks: dict[Block, list[nn.Parameter]] = {}
        self._trained: frozenset[Block] | None = None
        self._discriminator_step_parameters: list[nn.Parameter] = []  # what is reset with the discriminator
        self._initial_values: list[Tensor] = []  # their initial values, then the buffers
        self._discriminator_stage: int | None = None  # the stage of its last reset

    # ------------------------------------------------------------------ events

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self.policy.fresh_discriminator:
            # Before a checkpoint is loaded, and the same in every process.
            gan = gan_of(pl_module)
            trained = gan.discriminator_step_parameters()
            self._discriminator_step_parameters = [p for p in trained if p.requires_grad]
            kept = [*self._discriminator_step_parameters, *gan.discriminator.buffers()]
            self._initial_values = trainer.strategy.broadcast(
                [tensor.detach().cpu().clone() for tensor in kept]
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs after DDP has wrapped the networks: DDP must register every parameter that will be trained."""
        gan = gan_of(pl_module)
        self._blocks = {}
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                # Parameters that a network froze itself, such as a pretrained backbone, stay frozen.
                trainable_parameters = [p for p in group["params"] if p.requires_grad]
                if trainable_parameters and "network" in group:
                    self._blocks[Block(group["network"], group["block"])] = trainable_parameters
        self._check("policy", self.policy.names())
        self._check("learning_rate_factors", self.learning_rate_factors)
        growing = _growing(trainer)
        if self.policy.needs_growth and growing is not None and len(growing.stages) == 1:
            name = type(self.policy).__name__
            raise UserError(
                f"blockwise_training.policy {name} needs growth, but growth.stages has only one stage: add "
                "stages, as in configs/growth/progressive.yaml, or use another policy"
            )
        gan.learning_rate_factors = {(b.network, b.name): self._factor(b) for b in self._blocks}
        self._trained = None
        self._freeze_blocks(trainer, gan)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        gan = gan_of(pl_module)
        if self.policy.fresh_discriminator:
            index = self._stage(trainer, gan)
            if self._discriminator_stage is not None and index > self._discriminator_stage:
                self._reset_discriminator(trainer, gan)
            self._discriminator_stage = index
        self._freeze_blocks(trainer, gan)

    def state_dict(self) -> dict[str, Any]:
        return {"discriminator_of": self._discriminator_stage} if self.policy.fresh_discriminator else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._discriminator_stage = state_dict.get("discriminator_of")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._unfreeze_all(gan_of(pl_module))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._unfreeze_all(gan_of(pl_module))

    # ------------------------------------------------------------------ freezing

    def _freeze_blocks(self, trainer: Trainer, gan: TextToImageGAN) -> None:
        """Freeze and unfreeze blocks; computed from the clock, so the order of callbacks does not matter."""
        now = self._schedule_state(trainer, gan)
        active = [b for b in self._blocks if (b.resolution or 0) <= now.resolution]
        trained = frozenset(b for b in self.policy.blocks_to_train(active, now) if self._factor(b))
        if not trained:
            raise UserError(
                f"blockwise_training: no block is trained at {now.resolution} px: use at least one of "
                f"{', '.join(map(str, active))}"
            )
        if trained == self._trained:
            return
        for block, parameters in self._blocks.items():
            # Blocks that have not grown yet stay trainable while all active blocks are trained.
            grown = block in active
            trainable = block in trained if grown else len(trained) == len(active)
            for parameter in parameters:
                parameter.requires_grad_(trainable)
        self._report(trainer, gan, active, trained)
        self._trained = trained

    def _schedule_state(self, trainer: Trainer, gan: TextToImageGAN) -> ScheduleState:
        growing = _growing(trainer)
        if growing is None:
            return ScheduleState(gan.images_seen, 0, gan.growth.resolution, None)
        stages = growing.stages
        here = position(stages, gan.images_seen)
        before = stages[here.index - 1].resolution if here.index else None
        return ScheduleState(gan.images_seen, begin_of(stages, here.index), here.stage.resolution, before)

    def _stage(self, trainer: Trainer, gan: TextToImageGAN) -> int:
        growing = _growing(trainer)
        return 0 if growing is None else position(growing.stages, gan.images_seen).index

    def _unfreeze_all(self, gan: TextToImageGAN) -> None:
        """Unfreeze all blocks, so that another training of the same networks starts clean."""
        for parameters in self._blocks.values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        self._blocks, self._trained = {}, None
        gan.learning_rate_factors, gan.step_logger.trained_blocks, gan.step_logger.extra = {}, "", {}

    # ------------------------------------------------------------------ blocks and reports

    def _check(self, setting: str, names: Iterable[str]) -> None:
        known = {b.network for b in self._blocks} | {str(b) for b in self._blocks}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(
                f"blockwise_training.{setting} names {', '.join(unknown)}, which the networks do not have: "
                f"use {', '.join(map(str, self._blocks))}, or a whole network"
            )

    def _factor(self, block: Block) -> float:
        whole = self.learning_rate_factors.get(block.network, 1.0)
        return self.learning_rate_factors.get(str(block), whole)

    @torch.no_grad()
    def _reset_discriminator(self, trainer: Trainer, gan: TextToImageGAN) -> None:
        """Reset the discriminator to its initial weights, and clear its optimizer state."""
        optimizer_state = trainer.optimizers[0].state
        now = [*self._discriminator_step_parameters, *gan.discriminator.buffers()]
        for tensor, initial in zip(now, self._initial_values, strict=True):
            tensor.copy_(initial)
            optimizer_state.pop(tensor, None)  # a buffer has none

    def _report(
        self, trainer: Trainer, gan: TextToImageGAN, active: list[Block], trained: frozenset[Block]
    ) -> None:
        """Report the trained blocks to the progress bar and the loggers, if a policy is in use."""
        blocks = "" if len(trained) == len(active) else short(active, trained)
        if isinstance(self.policy, TrainAllBlocks) and not blocks:
            return
        changed, gan.step_logger.trained_blocks = blocks != gan.step_logger.trained_blocks, blocks
        trained_parameters = [p for b in trained for p in self._blocks[b]]
        gan.step_logger.extra |= {
            "blockwise_training/generator_blocks": sum(b.network == "generator" for b in trained),
            "blockwise_training/discriminator_blocks": sum(b.network == "discriminator" for b in trained),
            "blockwise_training/trained_parameters": sum(p.numel() for p in trained_parameters),
        }
        bar = trainer.progress_bar_callback
        if changed and isinstance(bar, ProgressBar):
            names = ", ".join(str(b) for b in active if b in trained)
            bar.print(f"{gan.images_seen / 1000:.1f} kimg  training {names if blocks else 'everything'}")


def short(active: list[Block], trained: frozenset[Block]) -> str:
    """The trained blocks in short, for example "G 16, D"; one letter if a whole network is trained."""
    parts = []
    for network, letter in (("generator", "G"), ("discriminator", "D")):
        own = [b for b in active if b.network == network]
        named = [b.name for b in own if b in trained]
        if named:
            parts.append(letter if len(named) == len(own) else f"{letter} {'+'.join(named)}")
    return ", ".join(parts)


def _growing(trainer: Trainer) -> ProgressiveGrowing | None:
    return next((c for c in callbacks_of(trainer) if isinstance(c, ProgressiveGrowing)), None)
