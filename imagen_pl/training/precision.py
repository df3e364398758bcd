"""Which number format to train in. It depends on the machine, so recipes leave the choice to this module.

Speed of a 3x3 convolution on two CPU cores with torch 2.15: without bfloat16 instructions, 118 to 140 GFLOP/s
in float32 and 11 to 17 in bfloat16; with avx512_bf16, about 210 in float32 and 400 to 480 in bfloat16.
AVX-512 alone is not enough.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator, CUDAAccelerator, MPSAccelerator

# Values of ONEDNN_MAX_CPU_ISA that leave oneDNN without bfloat16 arithmetic. It ignores unknown values
# (https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html).
_MASKS_WITHOUT_BFLOAT16 = {
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    *("AVX512_MIC", "AVX512_MIC_4OPS", "AVX512_CORE", "AVX512_CORE_VNNI"),
}


@dataclass(frozen=True)
class Support:
    """Whether a device is fast in bfloat16, and the reason, worded as the end of a sentence."""

    fast: bool
    reason: str


@dataclass(frozen=True)
class Race:
    """Speed of one 3x3 convolution in both formats, GFLOP/s."""

    float32: float
    bfloat16: float

    @property
    def slowdown(self) -> float:
        """How many times slower bfloat16 is; less than 1 where it is faster."""
        return self.float32 / self.bfloat16


@dataclass(frozen=True)
class PrecisionChoice:
    """The number format of a run, and why it was chosen.

    Args:
        name: as `Trainer(precision=...)` takes it.
        reason: the reason, worded as the end of a sentence.
        device: type of the device, for example cpu or cuda.
        resumed: whether it comes from the checkpoint that the run resumes from.
    """

    name: str
    reason: str
    device: str
    resumed: bool = False

    def lines(self) -> list[str]:
        """One line for the user, and a warning where the format is slow here (measured in 0.1 seconds)."""
        line = f"Precision: {self.name}, {self.reason}."
        if self.resumed:
            line += " --trainer.precision changes it."
        warning = slow_warning(self.name, self.device)
        return [line] if warning is None else [line, warning]


def choose_precision(
    accelerator: str | Accelerator = "auto",
    named: str | int | None = None,
    kept: str | None = None,
) -> PrecisionChoice:
    """The number format to train in.

    The first of these that applies: the format that the user set; the format of the checkpoint to resume
    from; bf16-mixed on a GPU or CPU with bfloat16 instructions; 32-true.

    Args:
        accelerator: as `Trainer(accelerator=...)` takes it.
        named: what the user set as `trainer.precision`; None if nothing.
        kept: format of the checkpoint to resume from; None for a new run.
    """
    device = device_type(accelerator)
    if named is not None:
        return PrecisionChoice(str(named), "as set by trainer.precision", device)
    if kept is not None:
        return PrecisionChoice(kept, "as in the checkpoint that this run resumes from", device, resumed=True)
    support = bfloat16_support(device)
    return PrecisionChoice("bf16-mixed" if support.fast else "32-true", f"since {support.reason}", device)


def kept_precision(checkpoint: dict[str, Any]) -> str | None:
    """The number format that a checkpoint was trained in; None if it is not recorded.

    Older checkpoints record it only in their configuration, where null means 32-true, Lightning's default.
    """
    if "precision" in checkpoint:
        return str(checkpoint["precision"])
    if "config" not in checkpoint:
        return None
    settings = yaml.safe_load(checkpoint["config"]).get("trainer", {})
    return str(settings.get("precision") or "32-true")


def device_type(accelerator: str | Accelerator) -> str:
    """Type of the device that Lightning uses for an accelerator: cpu, cuda, mps or another name."""
    if not isinstance(accelerator, str):
        kinds: dict[str, type[Accelerator]] = {
            "cpu": CPUAccelerator,
            "cuda": CUDAAccelerator,
            "mps": MPSAccelerator,
        }
        return next((n for n, kind in kinds.items() if isinstance(accelerator, kind)), "unknown device")
    if accelerator in ("auto", "gpu"):
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return accelerator


def bfloat16_support(device: str) -> Support:
    """Whether a type of device has instructions for bfloat16.

    Args:
        device: cpu, cuda, or another type, which counts as slow.
    """
    if device == "cuda":
        return _gpu_support()
    if device == "cpu":
        return _cpu_support()
    return Support(False, f"bfloat16 is not tested on {device}")


def _gpu_support() -> Support:
    for i in range(torch.cuda.device_count()):
        with torch.cuda.device(i):
            # Older GPUs emulate the format, slowly.
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                return Support(False, f"{torch.cuda.get_device_name(i)} has no bfloat16 arithmetic")
    return Support(True, f"{torch.cuda.get_device_name(0)} computes in bfloat16")


def _cpu_support() -> Support:
    mask = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    if mask.upper() in _MASKS_WITHOUT_BFLOAT16:
        return Support(False, f"ONEDNN_MAX_CPU_ISA={mask} turns bfloat16 instructions off")
    if not torch.backends.mkldnn.is_available():
        return Support(False, "this build of torch has no oneDNN, which computes in bfloat16 on CPUs")
    found = _bfloat16_instructions()
    if found is None:
        return Support(False, "this CPU has no bfloat16 instructions (avx512_bf16 or AMX)")
    if found != "bf16":
        return Support(True, f"this CPU has bfloat16 instructions ({found})")
    # ARM: whether the instructions are used depends on the build of torch.
    race = race_formats("cpu")
    figures = f"{race.bfloat16:.0f} GFLOP/s in bfloat16, {race.float32:.0f} in float32"
    return Support(race.slowdown < 1, f"a 3x3 convolution on this CPU reaches {figures}")


def _bfloat16_instructions() -> str | None:
    """avx512_bf16 or amx on x86, bf16 on ARM; None without either."""
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return next((n for n in ("amx_bf16", "avx512_bf16", "bf16") if capabilities.get(n)), None)
    # Earlier versions of torch have only these two.
    if torch.cpu._is_amx_tile_supported():
        return "amx_bf16"
    return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else None


def slow_warning(precision: str, device: str) -> str | None:
    """A warning that a format is slower than float32 here, with the measured ratio; None if it is not slower.

    Args:
        precision: as `Trainer(precision=...)` takes it.
        device: type of the device.
    """
    # On a CPU, Lightning replaces float16 by bfloat16.
    half = precision.startswith("bf16") or (device == "cpu" and precision.startswith("16"))
    if not half or device not in ("cpu", "cuda"):
        return None
    support = bfloat16_support(device)
    if support.fast:
        return None
    race = race_formats(device)
    if race.slowdown <= 1:
        return None
    return (
        f"Warning: bfloat16 is {race.slowdown:.1f} times slower than float32 here "
        f"({race.bfloat16:.0f} against {race.float32:.0f} GFLOP/s in a 3x3 convolution), "
        f"since {support.reason}. --trainer.precision 32-true is faster."
    )


def race_formats(device: str) -> Race:
    """Time one convolution of 32 channels in both formats; takes 0.1 seconds or less."""
    batch, channels, side = 8, 32, 32
    gflop = 2 * 9 * channels**2 * side**2 * batch / 1e9
    operands = []
    for dtype in (torch.float32, torch.bfloat16):
        maps = torch.ones(batch, channels, side, side, dtype=dtype, device=device)
        weight = torch.ones(channels, channels, 3, 3, dtype=dtype, device=device)
        operands.append((maps.contiguous(memory_format=torch.channels_last), weight))
    # Alternate the formats, so that other work on the machine slows both down. Taking the best time of each
    # drops the first call, which compiles.
    rounds = [[_timed_convolution(*pair) for pair in operands] for _ in range(5)]
    float32_s, bfloat16_s = (min(times) for times in zip(*rounds, strict=True))
    return Race(gflop / float32_s, gflop / bfloat16_s)


@torch.inference_mode()
def _timed_convolution(maps: torch.Tensor, weight: torch.Tensor) -> float:
    """Duration of one convolution, seconds."""
    begin = time.perf_counter()
    torch.nn.functional.conv2d(maps, weight, padding=1)
    if maps.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin
