"""Memory for tables."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.ops._library import is_observed, native

_HUGE_PAGE = 1 << 21  # bytes: smaller tables have none
_MEMORY = 1 << 47  # bytes, more than there can be


def new_table(rows: int, dim: int, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
    """Return an uninitialised table, in huge pages where the system has them.

    A look-up of random rows then finds their addresses in the processor's cache of them; with pages
    of 4 KiB, most rows of a large table cost a second miss for the address.

    Args:
        rows: E.
        dim: D.
        dtype: of the weights; None: PyTorch's default.
        device: of the table; on others than the CPU this is ``torch.empty``, as it is for small ones.

    Returns:
        ``(rows, dim)``, contiguous, of any content.

    Example:
        >>> new_table(10, 4, torch.float16, "cpu").shape
        torch.Size([10, 4])
    """
    dtype = dtype or torch.get_default_dtype()
    size = rows * dim * dtype.itemsize
    fits = _HUGE_PAGE <= size < _MEMORY
    if native is None or not fits or torch.device(device).type != "cpu" or is_observed():
        return torch.empty((rows, dim), dtype=dtype, device=device)
    try:
        pages: Tensor = native.new_pages(size)
    except MemoryError:
        return torch.empty((rows, dim), dtype=dtype, device=device)  # says how much was asked for
    # No view of it: parameters that are views cannot be changed in place by what autograd records.
    table = torch.empty(0, dtype=dtype, device="cpu")
    return table.set_(pages.untyped_storage(), 0, (rows, dim), (dim, 1))
