"""Blocks that are freed come back without the system clearing their pages."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

from torchrec import heap

pytestmark = pytest.mark.once

FAULTS = """
import json, resource, sys, torch
from torchrec.heap import expect_tensors, keep_freed_memory

def faults_of(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        blocks = [torch.empty(size << 18).fill_(1) for size in (3, 40, 11)]  # MiB
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of(2)
given_back = faults_of(4)
kept = keep_freed_memory()
expect_tensors()  # as kernels do, later: it takes nothing back
faults_of(2)
# What the system takes back by itself, where memory is short, it takes now and then.
print(json.dumps([kept, given_back, min(faults_of(4) for _ in range(3))]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, given_back, faults = json.loads(done.stdout)
    assert kept
    assert given_back > 4 * 40 * 256 / 2  # pages of 4 KiB or, some of them, of 2 MiB
    assert faults < 100


def test_other_c_libraries_have_no_such_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert heap.keep_freed_memory() is False
