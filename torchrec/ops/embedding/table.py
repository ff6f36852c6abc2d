"""Memory for tables."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.ops._library import native


def new_table(rows: int, dim: int, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
    """Return an uninitialised table, in huge pages where the system has them.

    A look-up of random rows then finds their addresses in the processor's cache of them; with pages
    of 4 KiB, most rows of a large table cost a second miss for the address.

    Args:
        rows: E.
        dim: D.
        dtype: of the weights; None: PyTorch's default.
        device: of the table; on others than the CPU this is ``torch.empty``.

    Returns:
        ``(rows, dim)``, contiguous, of any content.

    Example:
        >>> new_table(10, 4, torch.float16, "cpu").shape
        torch.Size([10, 4])
    """
    table = torch.empty((rows, dim), dtype=dtype, device=device)
    if native is not None and table.device.type == "cpu":
        native.advise_huge_pages(table.data_ptr(), table.numel() * table.element_size())
    return table
