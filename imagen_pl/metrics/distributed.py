"""Gathers and sums the values of metrics over all processes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed


def process_count() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_rank() -> int:
    return distributed.get_rank() if process_count() > 1 else 0


def all_rows(own: Float[Tensor, "n f"], device: torch.device) -> Float[Tensor, "m f"]:
    """The rows of all processes, on the CPU, in the order of ranks; each process may have another number.

    Args:
        own: rows of this process.
        device: device on which the processes communicate.
    """
    if process_count() == 1:
        return own.cpu()
    # Imported here: `evaluate` runs in one process, and torchmetrics takes seconds to import.
    from torchmetrics.utilities.distributed import gather_all_tensors

    return torch.cat([part.cpu() for part in gather_all_tensors(own.to(device))])


def all_items(own: list[Any]) -> list[Any]:
    """The items of all processes, in the order of ranks."""
    if process_count() == 1:
        return own
    parts: list[Any] = [None] * process_count()
    distributed.all_gather_object(parts, own)
    return [item for part in parts for item in part]


def sum_over_processes(own: Tensor) -> Tensor:
    """The sum over all processes, the same on each; `own` is not changed."""
    total = own.clone()
    if process_count() > 1:
        distributed.all_reduce(total)
    return total
