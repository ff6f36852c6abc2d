"""Memory of tables: in huge pages of its own, and otherwise like any other."""

from __future__ import annotations

import io
import sys
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode

from torchrec.ops._library import native
from torchrec.ops.embedding import new_table

HUGE_PAGE = 1 << 21


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.uint8], ids=str)
@pytest.mark.parametrize("rows", [0, 3, 40_000, 70_001])
def test_shape_and_dtype(rows: int, dtype: torch.dtype | None) -> None:
    table = new_table(rows, 20, dtype, "cpu")
    assert (tuple(table.shape), table.dtype) == ((rows, 20), dtype or torch.float32)
    assert table.is_contiguous()
    assert table.untyped_storage().nbytes() == rows * 20 * table.element_size()
    assert (table.fill_(3) == 3).all()


@pytest.mark.skipif(native is None, reason="without kernels all memory is PyTorch's")
@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked of Linux")
def test_large_tables_begin_with_a_huge_page() -> None:
    tables = [new_table(HUGE_PAGE // 64 + rows, 64, torch.uint8, "cpu") for rows in range(3)]
    assert [table.data_ptr() % HUGE_PAGE for table in tables] == [0, 0, 0]
    assert len({table.data_ptr() for table in tables}) == 3


def test_a_large_table_is_used_as_any_other() -> None:
    weight = nn.Parameter(new_table(80_000, 8, None, "cpu").zero_())
    with torch.no_grad():
        weight.add_(1)
    (weight * 2).sum().backward()
    assert torch.equal(weight.grad, torch.full_like(weight, 2.0))
    copy = deepcopy(weight)
    with torch.no_grad():
        copy[0] = 5
    assert weight[0, 0] == 1
    file = io.BytesIO()
    torch.save(weight.detach(), file)
    assert len(file.getvalue()) < weight.numel() * 4 + 4096
    weight.detach().share_memory_()
    assert torch.equal(torch.load(io.BytesIO(file.getvalue())), weight.detach())


def test_other_devices_and_modes_make_their_own() -> None:
    assert new_table(80_000, 8, None, "meta").is_meta
    with FakeTensorMode():
        assert isinstance(new_table(80_000, 8, None, "cpu"), FakeTensor)


@pytest.mark.parametrize("rows", [10**13, 10**18])
def test_a_table_that_no_memory_holds_says_so(rows: int) -> None:
    with pytest.raises(RuntimeError, match=r"allocate memory|overflowed"):
        new_table(rows, 16, None, "cpu")
