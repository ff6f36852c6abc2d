"""Memory of large results: the next one of their size has it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from torchrec.ops._library import native
from torchrec.ops._recycled import recycled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (1024, 1025), (3, 700, 701)], ids=str)
def test_shape_and_dtype(shape, dtype) -> None:
    tensor = recycled(shape, dtype)
    assert (tuple(tensor.shape), tensor.dtype, tensor.device.type) == (shape, dtype, "cpu")
    assert tensor.is_contiguous()
    assert (tensor.fill_(3) == 3).all()


@pytest.mark.skipif(native is None, reason="without kernels all memory is PyTorch's")
def test_large_memory_is_used_again_but_never_twice_at_a_time() -> None:
    first, second = recycled((1000, 1500)), recycled((1000, 1500))
    addresses = {first.data_ptr(), second.data_ptr()}
    assert len(addresses) == 2
    rows = second[10:]
    del first, second
    rows.fill_(7)
    third, fourth = recycled((1500, 1000)), recycled((1500, 1000))
    third.zero_()
    fourth.zero_()
    assert third.data_ptr() in addresses or fourth.data_ptr() in addresses
    assert (rows == 7).all()  # whose memory is not free while a view is there


_STEPS = """
import resource
import torch
from torchrec.ops._recycled import recycled

recycled((1 << 20,))
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        kept = [torch.zeros(1 << 19) for _ in range(29)]  # 2 MiB each, 14,848 pages in all
        del kept
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _pages_of_ten_steps(**variables: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", _STEPS],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    return int(ran.stdout)


@pytest.mark.skipif(native is None, reason="without kernels all memory is PyTorch's")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have rules of their own")
def test_what_a_step_frees_is_not_given_back_for_the_next_but_where_the_program_says_so() -> None:
    assert _pages_of_ten_steps() < 1_000
    assert _pages_of_ten_steps(MALLOC_TRIM_THRESHOLD_="4000000") > 100_000


class _Full:
    """A machine without memory."""

    @staticmethod
    def recycled(size: int) -> torch.Tensor:
        raise MemoryError("std::bad_alloc")


def test_where_there_is_no_memory_it_says_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrec.ops._recycled.native", _Full)
    for shape in ((1 << 45, 2), (1000, 1500)):
        with pytest.raises(ValueError, match=rf"fit the memory.*\[{shape[0]}, {shape[1]}\]"):
            recycled(shape)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return recycled(x.shape).copy_(x).mul_(2)

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_results_of_autograd_functions_can_be_changed_in_place() -> None:
    x = torch.ones(600, 500, requires_grad=True)
    _Doubled.apply(x).mul_(3).sum().backward()
    assert (x.grad == 6).all()
