"""All calls to private functions of Lightning, DDP, torch or W&B.

Each docstring gives the reason and the public call that would replace it. Check this file first when one of
these packages is updated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from wandb import Artifact, Run


def ignore_in_ddp(module: LightningModule, names: Sequence[str]) -> None:
    """Exclude parameters and buffers from DDP's broadcasts; call it before DDP wraps the module.

    Kernel-ridge buffers are large and equal in all processes. A public argument of DDP, or of Lightning's
    DDPStrategy, that names buffers to ignore would replace it.
    """
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(names))


def find_unused_parameters(strategy: Strategy) -> None:
    """Let DDP search for parameters without gradients, unless the user has set it.

    Blocks that have not grown yet get no gradient. The Trainer creates the strategy from its name before our
    code runs; in a script, `Trainer(strategy=DDPStrategy(find_unused_parameters=True))` is the public way.
    """
    if isinstance(strategy, DDPStrategy):
        strategy._ddp_kwargs.setdefault("find_unused_parameters", True)


def has_comm_hook(strategy: Strategy) -> bool:
    """Whether the user has set a communication hook; DDP accepts only one.

    Lightning's DDPStrategy has no public attribute for the argument `ddp_comm_hook`.
    """
    return isinstance(strategy, DDPStrategy) and strategy._ddp_comm_hook is not None


def dump_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """The state of a run as a checkpoint, collected without waiting for other processes.

    `Trainer.save_checkpoint` waits for all processes, and one of them may have failed. A public
    `Trainer.dump_checkpoint` would replace it.
    """
    checkpoint: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint()
    return checkpoint


def raise_recompile_limit(limit: int) -> None:
    """Let torch.compile compile one code object at least `limit` times (8 by default).

    Blocks share their class's code, and each is compiled for training, for being frozen and for sampling.
    A public limit for each compiled module would replace it.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, limit)


def use_new_artifact(run: Run, artifact: Artifact, aliases: list[str]) -> None:
    """Record that a W&B run uses a new artifact, online or offline.

    `Run.use_artifact` fails offline, although a new artifact needs no answer from the server. A version
    of it that waits for `wandb sync` would replace this.
    """
    if run.offline:
        run._log_artifact(artifact, aliases=aliases, is_user_created=True, use_after_commit=True)
    else:
        run.use_artifact(artifact, aliases=aliases)


def start_wandb_offline(logger: WandbLogger) -> None:
    """Start W&B offline after it could not be reached: the logger passes `mode` to wandb.init.

    The service process keeps the id of the failed start, so it is stopped first. A public way to change the
    arguments of wandb.init after WandbLogger was constructed would replace this.
    """
    import wandb

    wandb.teardown()
    logger._wandb_init["mode"] = "offline"
    _ = logger.experiment


class CheckpointSaver(ModelCheckpoint):
    """ModelCheckpoint with public methods that save, for subclasses that decide when to save.

    ModelCheckpoint saves only at Lightning's own events. Public methods that save the last and the best
    checkpoint would replace this class.
    """

    def scores(self, trainer: Trainer) -> dict[str, Tensor]:
        """The logged values that `monitor` may name."""
        return self._monitor_candidates(trainer)

    def save_if_best(self, trainer: Trainer) -> None:
        """Save a checkpoint if the monitored score is among the best."""
        self._save_topk_checkpoint(trainer, self.scores(trainer))

    def save_last_now(self, trainer: Trainer) -> None:
        """Save last.ckpt."""
        self._save_last_checkpoint(trainer, self.scores(trainer))
