"""Freed memory stays in the process: page faults of temporary tensors, counted by the kernel."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROBE = """
import resource
{setting}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    # sizes above the largest threshold that glibc reaches by itself (32 MiB)
    for _ in range(4):
        bytearray(48 * 2**20)
work()
before = faults()
work()
print(faults() - before)
"""
KEPT = "from raggd.backbone.device import keep_freed_memory; assert keep_freed_memory()"


def _faults(setting: str) -> int:
    code = PROBE.format(setting=setting)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_temporary_memory_is_not_given_back() -> None:
    """With the setting, the same temporary memory again costs (almost) no page fault."""
    plain, kept = _faults(""), _faults(KEPT)
    if plain < 1000:
        pytest.skip("this C library keeps freed memory by itself")
    assert kept < plain / 10
