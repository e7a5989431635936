"""Memory is kept for the next step, seen by what the system had to clear."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

TENSORS, MIB = 20, 48
CODE = f"""
import resource, torch
from c2c_lightning.training.acceleration import keep_freed_memory
kept = {{kept}} and keep_freed_memory()
for _ in range(10):  # until the heap is as large as it has to be
    torch.ones({MIB} * 2**18)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TENSORS}):
    torch.ones({MIB} * 2**18)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kept: bool) -> tuple[bool, int]:
    """Whether memory was kept, and the page faults of so many tensors, each freed before the next."""
    out = subprocess.run([sys.executable, "-c", CODE.format(kept=kept)], check=True, capture_output=True, text=True)
    was_kept, count = out.stdout.split()
    return was_kept == "True", int(count)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep it")
def test_freed_memory_is_used_again_and_not_cleared_anew():
    was_kept, count = faults(kept=True)
    assert was_kept
    _, otherwise = faults(kept=False)
    assert otherwise > TENSORS * MIB * 2**20 // 4096 // 2
    assert count < otherwise / 20
