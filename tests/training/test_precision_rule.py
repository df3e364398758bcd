"""The precision of a run, on stubbed machines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator

from imagen_pl.training import precision
from imagen_pl.training.precision import (
    PrecisionChoice,
    Race,
    bfloat16_support,
    choose_precision,
    device_type,
    kept_precision,
    race_formats,
    slow_warning,
)


@pytest.fixture(autouse=True)
def _no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)


def stub_cpu(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    """A machine without a GPU whose CPU has these capabilities, and AVX-512."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    found = {"avx512_f": True, **capabilities}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)


def stub_gpus(monkeypatch: pytest.MonkeyPatch, *with_bfloat16: bool) -> None:
    """A machine with GPUs, of which some compute in bfloat16."""
    current = [0]

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            current[0] = self.index

        def __exit__(self, *_: object) -> None:
            current[0] = 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(with_bfloat16))
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or with_bfloat16[current[0]],
    )


def stub_race(monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float) -> None:
    monkeypatch.setattr(precision, "race_formats", lambda device: Race(float32, bfloat16))


def refuse_race(device: str) -> Race:
    raise AssertionError("the probe is enough")


@pytest.mark.parametrize(
    ("capabilities", "chosen", "reason"),
    [
        ({"avx512_bf16": True}, "bf16-mixed", "this CPU has bfloat16 instructions (avx512_bf16)"),
        ({"amx_bf16": True}, "bf16-mixed", "this CPU has bfloat16 instructions (amx_bf16)"),
        ({}, "32-true", "this CPU has no bfloat16 instructions (avx512_bf16 or AMX)"),
    ],
)
def test_cpu_uses_bfloat16_if_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], chosen: str, reason: str
) -> None:
    stub_cpu(monkeypatch, **capabilities)
    monkeypatch.setattr(precision, "race_formats", refuse_race)

    choice = choose_precision()

    assert (choice.name, choice.device) == (chosen, "cpu")
    assert choice.lines() == [f"Precision: {chosen}, since {reason}."]


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "chosen"),
    [(True, False, "bf16-mixed"), (False, True, "bf16-mixed"), (False, False, "32-true")],
)
def test_earlier_versions_of_torch_are_queried_per_instruction(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool, chosen: str
) -> None:
    stub_cpu(monkeypatch)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)

    assert choose_precision().name == chosen


@pytest.mark.parametrize(
    ("variable", "mask", "chosen"),
    [
        ("ONEDNN_MAX_CPU_ISA", "AVX2", "32-true"),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core", "32-true"),
        ("DNNL_MAX_CPU_ISA", "AVX2", "32-true"),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", "bf16-mixed"),
        ("ONEDNN_MAX_CPU_ISA", "ALL", "bf16-mixed"),
    ],
)
def test_a_mask_that_hides_bfloat16_instructions_is_respected(
    monkeypatch: pytest.MonkeyPatch, variable: str, mask: str, chosen: str
) -> None:
    stub_cpu(monkeypatch, avx512_bf16=True)
    monkeypatch.setenv(variable, mask)

    choice = choose_precision()

    assert choice.name == chosen
    assert (mask in choice.reason) == (chosen == "32-true")


def test_without_onednn_a_cpu_is_slow_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_cpu(monkeypatch, bf16=True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)

    assert choose_precision().name == "32-true"


@pytest.mark.parametrize(("bfloat16", "chosen"), [(150.0, "bf16-mixed"), (20.0, "32-true")])
def test_on_arm_a_benchmark_decides(monkeypatch: pytest.MonkeyPatch, bfloat16: float, chosen: str) -> None:
    stub_cpu(monkeypatch, avx512_f=False, bf16=True)
    stub_race(monkeypatch, 100.0, bfloat16)

    choice = choose_precision()

    assert choice.name == chosen
    assert f"{bfloat16:.0f} GFLOP/s in bfloat16, 100 in float32" in choice.reason


@pytest.mark.parametrize(
    ("gpus", "chosen", "reason"),
    [
        ((True, True), "bf16-mixed", "GPU 0 computes in bfloat16"),
        ((True, False), "32-true", "GPU 1 has no bfloat16 arithmetic"),
    ],
)
def test_gpus_use_bfloat16_if_all_support_it_without_emulation(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[bool, ...], chosen: str, reason: str
) -> None:
    stub_gpus(monkeypatch, *gpus)

    choice = choose_precision("auto")

    assert (choice.name, choice.device) == (chosen, "cuda")
    assert reason in choice.reason


def test_run_on_the_cpu_of_a_machine_with_a_gpu_uses_the_cpu_s_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stub_cpu(monkeypatch)
    stub_gpus(monkeypatch, True)

    assert choose_precision("cpu").name == "32-true"


def test_untested_devices_use_float32() -> None:
    assert choose_precision("mps").name == choose_precision("tpu").name == "32-true"


def test_accelerators_are_found_by_name_and_by_object(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_cpu(monkeypatch)
    assert device_type("auto") == device_type("gpu") == device_type("cpu") == "cpu"
    assert device_type(CPUAccelerator()) == "cpu"
    assert device_type(CUDAAccelerator()) == "cuda"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_type("gpu") == "mps"


def test_precision_is_the_user_s_else_the_checkpoint_s_else_the_rule_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stub_cpu(monkeypatch, avx512_bf16=True)

    assert choose_precision("cpu").name == "bf16-mixed"
    assert choose_precision("cpu", kept="32-true").name == "32-true"
    assert choose_precision("cpu", named="64-true", kept="32-true").name == "64-true"
    assert choose_precision("cpu", named=16).name == "16"


def test_precision_of_a_checkpoint_is_reported_with_the_setting_that_changes_it() -> None:
    assert choose_precision("cpu", kept="32-true").lines() == [
        "Precision: 32-true, as in the checkpoint that this run resumes from. --trainer.precision changes it."
    ]


@pytest.mark.parametrize("name", ["bf16-mixed", "bf16-true", "bf16", "16-mixed", "16"])
def test_a_format_that_is_slow_here_gets_a_warning_with_the_measured_ratio(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stub_cpu(monkeypatch)
    stub_race(monkeypatch, 124.0, 12.4)

    said, warning = choose_precision("cpu", named=name).lines()

    assert said == f"Precision: {name}, as set by trainer.precision."
    assert warning == (
        "Warning: bfloat16 is 10.0 times slower than float32 here (12 against 124 GFLOP/s in a 3x3 "
        "convolution), since this CPU has no bfloat16 instructions (avx512_bf16 or AMX). "
        "--trainer.precision 32-true is faster."
    )


@pytest.mark.parametrize("name", ["32-true", "64-true", "32"])
def test_float32_gets_no_warning_and_no_benchmark(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    stub_cpu(monkeypatch)
    monkeypatch.setattr(precision, "race_formats", refuse_race)

    assert slow_warning(name, "cpu") is None


def test_bfloat16_that_is_not_slower_gets_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_cpu(monkeypatch)
    stub_race(monkeypatch, 100.0, 100.0)
    assert slow_warning("bf16-mixed", "cpu") is None

    stub_cpu(monkeypatch, amx_bf16=True)
    monkeypatch.setattr(precision, "race_formats", refuse_race)
    assert slow_warning("bf16-mixed", "cpu") is None
    assert slow_warning("bf16-mixed", "tpu") is None


@pytest.mark.parametrize(
    ("checkpoint", "kept"),
    [
        ({"precision": "32-true", "config": "trainer: {precision: bf16-mixed}"}, "32-true"),
        ({"config": "trainer: {precision: bf16-mixed}"}, "bf16-mixed"),
        ({"config": "trainer: {precision: null}"}, "32-true"),  # older checkpoints, without the entry
        ({"config": "{}"}, "32-true"),
        ({}, None),
    ],
)
def test_checkpoint_records_its_precision(checkpoint: dict[str, Any], kept: str | None) -> None:
    assert kept_precision(checkpoint) == kept


def test_benchmark_times_both_formats() -> None:
    race = race_formats("cpu")

    assert race.float32 > 0
    assert race.bfloat16 > 0
    assert race.slowdown == race.float32 / race.bfloat16


def test_this_machine_gets_a_precision() -> None:
    assert bfloat16_support("cpu").reason
    assert isinstance(choose_precision(), PrecisionChoice)
