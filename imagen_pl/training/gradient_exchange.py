"""Gradient communication of distributed runs."""

# No `from __future__ import annotations` here: DDP checks the annotations of a communication hook.

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, distributed
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from imagen_pl.training.private_api import has_comm_hook


def exchange_own_gradients(strategy: Strategy) -> None:
    """Let DDP average only the gradients of the network that is updated in a step.

    The networks of a GAN are updated in turn, and DDP would send buckets of zeros for the others. A bucket
    that contains parameters of two networks is sent in the steps of both. Call it after DDP has wrapped the
    module. It does nothing for other strategies, or if the user has set a communication hook.
    """
    if isinstance(strategy.model, DistributedDataParallel) and not has_comm_hook(strategy):
        strategy.model.register_comm_hook(distributed.group.WORLD, average_gradients)


def average_gradients(
    group: distributed.ProcessGroup, bucket: distributed.GradBucket
) -> torch.futures.Future[Tensor]:
    """Communication hook of DDP: averages over all processes, or sends nothing if all parameters are frozen.

    Args:
        group: the processes.
        bucket: gradients of several parameters, in one flat tensor.
    """
    if any(parameter.requires_grad for parameter in bucket.parameters()):
        return default_hooks.allreduce_hook(group, bucket)
    unchanged: torch.futures.Future[Tensor] = torch.futures.Future()
    unchanged.set_result(bucket.buffer())
    return unchanged
