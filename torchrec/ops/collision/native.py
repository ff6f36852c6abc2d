"""The operators of id maps on the native library: what guards memory, and addresses.

The kernels take the values of tensors on trust but for one thing: whatever an index holds, no search leaves the map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native
from torchrec.ops.collision.state import index_size

_lib: Any = native
_written = (
    torch.autograd.graph.increment_version
)  # kernels write behind PyTorch's back; autograd has to know


def _address(name: str, tensor: Tensor, count: int, dtype: torch.dtype = torch.int64) -> int:
    """Return where a tensor begins that has ``count`` elements of this dtype, side by side, in the CPU's memory."""
    if (
        tensor.numel() != count
        or tensor.dtype is not dtype
        or not tensor.is_cpu
        or not tensor.is_contiguous()
    ):
        raise ValueError(
            f"`{name}` should be {count} contiguous elements of {dtype} on the CPU. "
            f"Received {list(tensor.shape)} of {tensor.dtype} on {tensor.device}."
        )
    return tensor.data_ptr()


def _index(ids: Tensor, index: Tensor) -> tuple[int, int, int, int]:
    rows, size = ids.numel(), index_size(ids.numel())
    return _address("ids", ids, rows), rows, _address("index", index, size, torch.int32), size


def _map(ids: Tensor, occupied: Tensor, index: Tensor) -> tuple[int, int, int, int, int]:
    return *_index(ids, index), _address("occupied", occupied, ids.numel(), torch.bool)


def _checked_rows(ids: Tensor, rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    if rows.numel() and not (int(rows.min()) >= 0 and int(rows.max()) < ids.numel()):
        raise IndexError(f"`rows` should be in [0, {ids.numel()}). Received others.")
    return rows


def find(ids: Tensor, index: Tensor, wanted: Tensor, missing: int) -> Tensor:
    """See ``reference.find``."""
    wanted = wanted.contiguous()
    count = wanted.numel()
    rows = torch.empty_like(wanted)
    source = _address("wanted", wanted, count)
    threads = torch.get_num_threads()
    _lib.id_map_find(*_index(ids, index), source, count, missing, rows.data_ptr(), threads)
    return rows


def count_(
    ids: Tensor,
    index: Tensor,
    counts: Tensor | None,
    last: Tensor | None,
    history_ids: Tensor,
    history_counts: Tensor,
    history_last: Tensor,
    history_index: Tensor,
    history_size: Tensor,
    totals: Tensor,
    batch: Tensor,
    now: int,
    missing: int,
) -> Tensor:
    """See ``reference.count_``."""
    batch = batch.contiguous()
    count, room = batch.numel(), history_ids.numel()
    rows = torch.empty_like(batch)
    _lib.id_map_count(
        *_index(ids, index),
        0 if counts is None else _address("counts", counts, ids.numel()),
        0 if last is None else _address("last", last, ids.numel()),
        *_index(history_ids, history_index),
        _address("history_counts", history_counts, room),
        _address("history_last", history_last, room),
        _address("history_size", history_size, 1),
        _address("totals", totals, 3),
        _address("batch", batch, count),
        count,
        now,
        missing,
        rows.data_ptr(),
        torch.get_num_threads(),
    )
    written = [history_ids, history_counts, history_last, history_index, history_size, totals]
    _written([*written, *(t for t in (counts, last) if t is not None)])
    return rows


def replace_(
    ids: Tensor,
    occupied: Tensor,
    index: Tensor,
    scores: Tensor,
    candidates: Tensor,
    candidate_scores: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.replace_``."""
    scores, candidates = scores.contiguous(), candidates.contiguous()
    candidate_scores = candidate_scores.contiguous()
    count, dtype = candidates.numel(), scores.dtype
    if dtype not in (torch.int64, torch.float64):
        raise TypeError(f"`scores` should be int64 or float64. Received {dtype}.")
    room = min(count, ids.numel())
    rows, chosen, evicted = (ids.new_empty(room) for _ in range(3))
    changed, lost = _lib.id_map_replace(
        *_map(ids, occupied, index),
        _address("scores", scores, ids.numel(), dtype),
        _address("candidate_scores", candidate_scores, count, dtype),
        dtype is torch.float64,
        _address("candidates", candidates, count),
        count,
        rows.data_ptr(),
        chosen.data_ptr(),
        evicted.data_ptr(),
        torch.get_num_threads(),
    )
    _written([ids, occupied, index])
    return rows.narrow(0, 0, changed), chosen.narrow(0, 0, changed), evicted.narrow(0, 0, lost)


def insert_(ids: Tensor, occupied: Tensor, index: Tensor, new: Tensor, rows: Tensor) -> None:
    """See ``reference.insert_``."""
    new, rows = new.contiguous(), _checked_rows(ids, rows)
    count = rows.numel()
    addresses = _address("new", new, count), _address("rows", rows, count)
    _lib.id_map_insert(*_map(ids, occupied, index), *addresses, count)
    _written([ids, occupied, index])


def erase_(ids: Tensor, occupied: Tensor, index: Tensor, rows: Tensor) -> None:
    """See ``reference.erase_``."""
    rows = _checked_rows(ids, rows)
    count = rows.numel()
    _lib.id_map_erase(*_map(ids, occupied, index), _address("rows", rows, count), count)
    _written([occupied, index])


def rebuild_(ids: Tensor, rows: Tensor, index: Tensor) -> None:
    """See ``reference.rebuild_``."""
    rows = _checked_rows(ids, rows)
    count = rows.numel()
    _lib.id_map_rebuild(*_index(ids, index), _address("rows", rows, count), count)
    _written([index])
