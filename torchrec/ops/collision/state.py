"""The tensors of an id map and of the counts of ids without a row, and how large they are."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from torchrec.ops._library import native

MAX_ROWS = (
    2**31 - 2
)  # an entry of the index holds row + 1 in 31 bits or fewer, a part of the id's hash in the others


class IdMap(NamedTuple):
    """Which id holds which row: three tensors, and nothing else.

    ``ids`` and ``occupied`` are the map; the index, an open-addressing hash table from an id's hash to its row, follows
    from them (``rebuild_index``), so it need not be saved. Every int64 is an id: no value stands for "none".

    Attributes:
        ids: ``[E]`` int64, the id that holds each row; of any value where a row is free.
        occupied: ``[E]`` bool, whether a row is held.
        entries: ``[index_size(E)]`` int32, the index; 0 where free.
    """

    ids: Tensor
    occupied: Tensor
    entries: Tensor


class History(NamedTuple):
    """Ids without a row and how often they came since the history was last cleared, in order of first appearance.

    Attributes:
        ids: ``[C]`` int64, of which the first ``size`` are in use; distinct.
        counts: ``[C]`` int64, occurrences.
        last: ``[C]`` int64, iteration of the last occurrence.
        entries: ``[index_size(C)]`` int32, the index; 0 where free.
        size: ``[1]`` int64.
    """

    ids: Tensor
    counts: Tensor
    last: Tensor
    entries: Tensor
    size: Tensor


class Counted(NamedTuple):
    """Ids that came, how often, and when last: those of a history, or some of them.

    Attributes:
        ids: ``[C]`` int64, distinct.
        counts: ``[C]`` int64, occurrences.
        last: ``[C]`` int64, iteration of the last occurrence.
    """

    ids: Tensor
    counts: Tensor
    last: Tensor


class Exchanged(NamedTuple):
    """What ``exchange_ids`` has changed.

    Attributes:
        rows: ``[M]`` int64, rows with a new id: first those that were free, then those that another id held, each
            ascending.
        evicted: how many ids lost their rows.
    """

    rows: Tensor
    evicted: int


class Replaced(NamedTuple):
    """What ``replace_ids`` has changed.

    Attributes:
        rows: ``[M]`` int64, rows with a new id: first those that were free, then those that another id held, each
            ascending.
        chosen: ``[M]`` int64, position of each row's new id among the candidates; ascending.
        evicted: ``[K]`` int64, ids that lost their rows, the last K of ``rows``.
    """

    rows: Tensor
    chosen: Tensor
    evicted: Tensor


@lru_cache(maxsize=64)
def index_size(rows: int) -> int:
    """Return the number of entries of an index of ``rows`` rows: a power of two, at least 16, at most two thirds used.

    Example:
        >>> index_size(10), index_size(11), index_size(100_000)
        (16, 32, 262144)
    """
    return 1 << max(4, ((3 * rows + 1) // 2 - 1).bit_length())


def _zeros(count: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return zeros, in huge pages where the system has them: nearly every access to a large map is a random one."""
    tensor = torch.empty(count, dtype=dtype, device=device)
    if native is not None and tensor.device.type == "cpu":
        native.advise_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    return tensor.zero_()


def new_id_map(rows: int, device: torch.device | str = "cpu") -> IdMap:
    """Return a map of ``rows`` free rows.

    It takes 9 bytes a row and 6 to 12 for the index, so with a count of 8 bytes a row at most 29.

    Args:
        rows: E, from 1 to 2**31 - 2.
        device: of the tensors. Default: the CPU.

    Returns:
        The map.

    Raises:
        ValueError: rows are out of range.

    Example:
        >>> [list(tensor.shape) for tensor in new_id_map(4)]
        [[4], [4], [16]]
    """
    if not 1 <= rows <= MAX_ROWS:
        raise ValueError(f"`rows` should be from 1 to {MAX_ROWS}. Received {rows}.")
    return IdMap(
        _zeros(rows, torch.int64, device),
        _zeros(rows, torch.bool, device),
        _zeros(index_size(rows), torch.int32, device),
    )


def new_history(capacity: int, device: torch.device | str = "cpu") -> History:
    """Return an empty history with room for ``capacity`` distinct ids, at least 1.

    Example:
        >>> new_history(100).counts.shape
        torch.Size([100])
    """
    if not 1 <= capacity <= MAX_ROWS:
        raise ValueError(f"`capacity` should be from 1 to {MAX_ROWS}. Received {capacity}.")
    return History(
        _zeros(capacity, torch.int64, device),
        _zeros(capacity, torch.int64, device),
        _zeros(capacity, torch.int64, device),
        _zeros(index_size(capacity), torch.int32, device),
        torch.zeros(1, dtype=torch.int64, device=device),
    )
