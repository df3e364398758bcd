"""Manual optimization: several optimizers, micro-batches, clipping, and a stop on infinite or NaN losses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from imagen_pl.errors import TrainingStopped, UserError
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.generators.base import Generator
from imagen_pl.schedules import RunState, Schedule
from imagen_pl.training.clocked_module import ClockedModule
from imagen_pl.training.private_api import raise_recompile_limit
from imagen_pl.training.step_logger import StepLogger
from imagen_pl.types import Growth

_SETTINGS = ("discriminator_optimizer", "generator_optimizer", "captioning.init_args.optimizer")
SHARED = "shared"  # the block of the parameters outside every resolution's block


class ManualOptimization(ClockedModule):
    """Clipping and gradient accumulation for several optimizers; Lightning automates them for a single one.

    Args:
        accumulate: micro-batches into which a batch is split, to save memory.
        gradient_clip: largest norm of each optimizer's gradient; None does not clip.

    Attributes:
        run_state: the clock, the growth and the stage.
        learning_rate_factors: factor on the learning rate of a block, by network and the block's name, for
            example ("generator", "16"); 1 for blocks that are not listed.
        learning_rates: each optimizer's current learning rate, before the blocks' factors.
        learning_rate_schedule: factor on the networks' learning rates by images seen; None leaves them
            constant.
        beta2_schedule: second beta of the networks' optimizers by images seen; None leaves it constant.
    """

    learning_rate_schedule: Schedule | None = None
    beta2_schedule: Schedule | None = None

    def __init__(self, run_state: RunState, accumulate: int = 1, gradient_clip: float | None = None) -> None:
        super().__init__()
        self.run_state = run_state
        self.automatic_optimization = False
        self.accumulate, self.gradient_clip = accumulate, gradient_clip
        self.learning_rate_factors: Mapping[tuple[str, str], float] = {}
        self.learning_rates: list[float] = []
        self._base_lrs: list[float] = []  # the optimizers' initial learning rates
        self.step_logger = StepLogger()
        self._terms: list[tuple[tuple[str, ...], Tensor]] = []  # loss terms of this step, by micro-batch

    @property
    def growth(self) -> Growth:
        """How far the networks have grown."""
        return self.run_state.growth

    @growth.setter
    def growth(self, growth: Growth) -> None:
        self.run_state.growth = growth

    def microbatches(self, rows: int) -> Iterator[tuple[slice, float, AbstractContextManager[Any]]]:
        """Split a batch into `accumulate` micro-batches.

        Each comes as its rows, their share of the batch, and a context manager for its backward pass. Only
        the last backward pass synchronises gradients with the other processes.
        """
        part = -(-rows // self.accumulate)
        strategy = self.trainer.strategy
        for start in range(0, rows, part):
            end = min(start + part, rows)
            wait = end < rows and isinstance(strategy, ParallelStrategy)
            block = getattr(strategy, "block_backward_sync", nullcontext) if wait else nullcontext
            yield slice(start, end), (end - start) / rows, block()

    def backward_mean(self, terms: dict[str, Float[Tensor, " b"]], share: float) -> None:
        """Average each term over the batch, add the terms up, and run the backward pass."""
        means = {name: term.mean() for name, term in terms.items()}
        self.step_logger.note(means)
        values = torch.stack(list(means.values()))
        self._terms.append((tuple(means), values.detach()))
        total = values.sum()
        # A loss that is not finite makes all gradients not finite, on all processes: they stop together.
        self.manual_backward(total * (share + 0 * total.detach()))

    def step(self, optimizer: LightningOptimizer, parameters: Iterable[nn.Parameter], norm_name: str) -> None:
        """Clip the gradients and step, unless the gradient norm is not finite.

        Args:
            optimizer: the optimizer to step.
            parameters: the parameters that it updates.
            norm_name: the name under which their gradient norm is logged.

        Raises:
            TrainingStopped: a loss or the gradient norm is not finite.
        """
        gradients = [p for p in parameters if p.grad is not None]
        scale = self.loss_scale()
        norm = nn.utils.get_total_norm([p.grad for p in gradients if p.grad is not None])
        if not torch.isfinite(norm):
            self._stop_if_not_finite(norm_name, norm, allow_overflow=self._scaler is not None)
        if self.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(gradients, self.gradient_clip * scale, norm)
        self.step_logger.note({norm_name: norm / scale})
        self._terms.clear()
        optimizer.step()
        optimizer.zero_grad()

    @property
    def _scaler(self) -> Any:
        """Scales the losses of float16 training, so that small gradients do not vanish; None otherwise."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def loss_scale(self) -> float:
        """The factor of float16 training on losses and gradients; 1 in other precisions."""
        return 1.0 if self._scaler is None else float(self._scaler.get_scale())

    def _stop_if_not_finite(self, name: str, norm: Tensor, allow_overflow: bool) -> None:
        """Stop before a gradient that is not finite reaches the weights; all processes get here together.

        Args:
            name: the name under which the gradient norm is logged.
            norm: the gradient norm.
            allow_overflow: do not stop if only gradients overflow: float16's scaler skips such a step.

        Raises:
            TrainingStopped: a loss or the gradient norm is not finite.
        """
        bad: dict[str, float] = {}
        for names, values in self._terms:
            everywhere = self.trainer.strategy.all_gather(values).reshape(-1, len(names))
            for term, column in zip(names, everywhere.T, strict=True):
                if not torch.isfinite(column).all():
                    bad.setdefault(term, column[~torch.isfinite(column)][0].item())
        if not bad and allow_overflow:
            return
        bad = bad or {name: norm.item()}
        raise TrainingStopped(
            f"{', '.join(bad)} became {', '.join(map(str, bad.values()))} at "
            f"{self.images_seen} images seen ({self.growth.resolution} px): try a lower learning rate, "
            "a larger penalty weight, or gradient_clip"
        )

    def record_base_lrs(self, optimizers: list[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
        """Record the initial learning rates of the optimizers that the module returns to Lightning.

        Loading the state of another kind of optimizer then raises a UserError, since its state would not fit.
        """
        for optimizer, setting in zip(optimizers, _SETTINGS, strict=False):
            optimizer.register_load_state_dict_pre_hook(partial(_check_kind, setting))
        self._base_lrs = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        self.learning_rates = list(self._base_lrs)
        return optimizers

    def optimizer_with_current_lr(self, index: int) -> LightningOptimizer:
        """The optimizer at the index, with its current learning rate set.

        The rate is the stage's, or else the optimizer's initial one, times the schedule and each block's
        factor. The captioner keeps its initial rate.

        Args:
            index: 0 for the discriminator's optimizer, 1 for the generator's, 2 for the captioner's.
        """
        rate = self._base_lrs[index]
        if index < 2:
            if (stage := self.run_state.stage) is not None:
                stage_lr = (stage.discriminator_lr, stage.generator_lr)[index]
                rate = rate if stage_lr is None else stage_lr
            if self.learning_rate_schedule is not None:
                rate *= self.learning_rate_schedule(self.images_seen)
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        optimizer = optimizers[index]
        self.learning_rates[index] = rate
        for group in optimizer.param_groups:
            factor = self.learning_rate_factors.get((group.get("network", ""), group.get("block", "")), 1.0)
            group["lr"] = rate * factor
            if self.beta2_schedule is not None and index < 2:
                if "betas" not in group:
                    raise UserError("model.beta2_schedule needs optimizers with betas, such as Adam or Muon")
                group["betas"] = (group["betas"][0], self.beta2_schedule(self.images_seen))
        return optimizer

    def reset_optimizer_state(self, resolution: int | None) -> None:
        """Drop the optimizer state of the blocks that `resolution` added; None: of both whole networks."""
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                if group.get("block") == str(resolution) or (resolution is None and "block" in group):
                    for parameter in group["params"]:
                        optimizer.state.pop(parameter, None)

    @staticmethod
    def by_block(
        network: Generator | Discriminator, name: str, others: Iterable[nn.Parameter] = ()
    ) -> list[dict[str, Any]]:
        """A network's parameter groups for its optimizer, one group a block.

        Args:
            network: the network.
            name: name of the network.
            others: parameters that are trained with it and belong to no block.
        """
        blocks = {str(resolution): list(b.parameters()) for resolution, b in network.blocks().items()}
        all_parameters = {id(p): p for p in (*network.parameters(), *others)}
        in_blocks = {id(p) for parameters in blocks.values() for p in parameters}
        shared = [p for key, p in all_parameters.items() if key not in in_blocks]
        groups = {SHARED: shared, **blocks}
        return [
            {"params": learnt, "network": name, "block": block} for block, learnt in groups.items() if learnt
        ]


def is_trainable(network: nn.Module) -> bool:
    """Whether any of its parameters requires a gradient."""
    return any(parameter.requires_grad for parameter in network.parameters())


def parts_to_compile(network: Generator | Discriminator) -> list[nn.Module]:
    """A network's blocks; of a network that does not grow, its layers, those of containers one by one."""
    if blocks := list(network.blocks().values()):
        return blocks
    found: list[nn.Module] = []
    for part in network.children():
        if isinstance(part, (Generator, Discriminator)):  # within one that reads or draws latents
            found += parts_to_compile(part)
        else:
            found += part.children() if isinstance(part, (nn.ModuleList, nn.ModuleDict)) else [part]
    return [layer for layer in found if any(True for _ in layer.parameters())]


def compile_each(blocks: Iterable[nn.Module]) -> None:
    """Compile each block separately with torch.compile."""
    for block in blocks:
        block.compile()
    raise_recompile_limit(64)


def _check_kind(setting: str, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Raise UserError if a checkpoint holds the state of another kind of optimizer.

    Two kinds differ if each has settings that the other lacks. Between versions of torch one optimizer may
    gain settings or lose some, but not both.
    """
    own, held = set(optimizer.param_groups[0]), set(state["param_groups"][0])
    if own - held and held - own:
        raise UserError(
            f"the checkpoint was written with another optimizer than {type(optimizer).__name__}, which "
            f"model.{setting} is now: resume with the original optimizer, or start a new run with init_from"
        )
