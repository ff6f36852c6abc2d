"""Rows of pools: which ids there are, and writing rows of which some come twice."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.checks import require_integer, require_type
from torchrec.modules._private import assert_later

__all__ = ["check_ids", "check_size", "last_of_each"]


def check_size(name: str, size: int) -> None:
    """Raise for what is no positive integer.

    Args:
        name: of the argument.
        size: its value.
    """
    require_integer(size, f"`{name}`", least=1)


def check_ids(ids: Tensor, pool_size: int) -> None:
    """Raise for ids that a pool does not have; an accelerator is not waited for, it fails itself.

    Args:
        ids: ``(N,)``.
        pool_size: ids are in ``[0, pool_size)``.
    """
    require_type(ids, "`ids`", Tensor)
    if ids.dim() != 1 or ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            "`ids` should be a one-dimensional int32 or int64 tensor. "
            f"Received {ids.dim()} dimensions of {ids.dtype}."
        )
    wrong = (ids < 0) | (ids >= pool_size)
    if is_compiling() or not ids.is_cpu:
        assert_later(~wrong.any(), f"`ids` should be in [0, {pool_size}).")
    elif wrong.any():
        at = int(wrong.nonzero()[0])
        raise IndexError(
            f"`ids` should be in [0, {pool_size}), the places of the pool. "
            f"Received {int(ids[at])} at position {at}."
        )


def last_of_each(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct ids, and the last position of each.

    Args:
        ids: ``(N,)``.
    """
    order = torch.argsort(ids, stable=True)
    ordered = ids[order]
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    return ordered[last], order[last]
