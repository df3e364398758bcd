"""What the processes of a distributed run send each other in each step."""

# Annotations must not be strings here: DDP checks those of a communication hook.

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, distributed
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from imagen_pl.training.private_api import has_comm_hook


def exchange_own_gradients(strategy: Strategy) -> None:
    """Let DDP average the gradients of the network that takes the step, and not those of the others.

    The networks of a GAN step in turn, and DDP would send a bucket of zeros for each of the others. A bucket
    that holds parameters of two networks is sent in the steps of both. Call it once DDP has wrapped the
    module. It does nothing for other strategies, and where the user has chosen a communication hook.
    """
    if isinstance(strategy.model, DistributedDataParallel) and not has_comm_hook(strategy):
        strategy.model.register_comm_hook(distributed.group.WORLD, average_gradients)


def average_gradients(
    group: distributed.ProcessGroup, bucket: distributed.GradBucket
) -> torch.futures.Future[Tensor]:
    """A communication hook of DDP: the mean over all processes, or nothing if no parameter is trained now.

    Args:
        group: the processes.
        bucket: gradients of some parameters, in one flat tensor.
    """
    if any(parameter.requires_grad for parameter in bucket.parameters()):
        return default_hooks.allreduce_hook(group, bucket)
    unchanged: torch.futures.Future[Tensor] = torch.futures.Future()
    unchanged.set_result(bucket.buffer())
    return unchanged
