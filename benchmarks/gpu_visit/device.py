"""What a machine is, and its peaks: the rates of a matrix product and of a convolution in bfloat16."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import machine

_LONG_CALL_S = 0.02
Call = Callable[[], Tensor]


def environment() -> dict[str, Any]:
    """The machine, its device, and the device's peaks in bfloat16, TFLOP/s."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {
        **machine(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"device": properties.name, "memory_gb": properties.total_memory / 2**30}
    for name, make, first, largest in (
        ("matmul_tflops", _matmul, 128, 16384),
        ("convolution_tflops", _convolution, 1, 1024),
    ):
        try:
            found[name] = peak_tflops(make, device, first, largest)
        except RuntimeError as error:
            found[name] = f"not measured: {error}"
    torch.cuda.empty_cache()  # the trainings need the memory
    return found


def _matmul(size: int, device: torch.device) -> tuple[Call, float]:
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return lambda: a @ b, 2.0 * size**3


def _convolution(images: int, device: torch.device) -> tuple[Call, float]:
    """3 x 3, 256 channels, 32 px."""
    x = torch.randn(images, 256, 32, 32, device=device, dtype=torch.bfloat16)
    weight = torch.randn(256, 256, 3, 3, device=device, dtype=torch.bfloat16)
    x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
    return lambda: F.conv2d(x, weight, padding=1), 2.0 * images * 32 * 32 * 9 * 256 * 256


@torch.inference_mode()
def peak_tflops(
    make: Callable[[int, torch.device], tuple[Call, float]], device: torch.device, size: int, largest: int
) -> float:
    """The best rate of a computation, whose size is doubled until a call takes 20 ms.

    Args:
        make: from size and device to a call and its FLOPs.
        device: where to compute.
        size, largest: the first size and the last.
    """
    best = 0.0
    while True:
        call, flops = make(size, device)
        call()
        fastest_s = min(_seconds(call, device) for _ in range(3))
        best = max(best, flops / fastest_s / 1e12)
        if fastest_s > _LONG_CALL_S or size >= largest:
            return best
        size *= 2


def _seconds(call: Call, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
