"""Freed memory stays with the training process, and results do not change."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, torch
from imagen_pl.training.malloc import keep_freed_memory
{call}
for _ in range(4):
    torch.ones(1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(64):
    torch.ones(1 << 20), torch.ones(9 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no such setting")
def test_tensors_of_megabytes_reuse_the_memory_of_those_before() -> None:
    def page_faults(call: str) -> int:
        command = [sys.executable, "-c", _FAULTS.format(call=call)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert page_faults("assert keep_freed_memory()") * 10 < page_faults("")
