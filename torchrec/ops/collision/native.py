"""The operators of id maps on the native library.

The kernels take the values of tensors on trust but for one thing: whatever an index holds, no search leaves the map.
That tensors have the dtypes and sizes that kernels assume, the bindings see to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from operator import is_not
from typing import Any, TypeGuard

import torch
from torch import Tensor

from torchrec.ops._library import native

_lib: Any = native
_is_there: Callable[[Tensor | None], TypeGuard[Tensor]] = partial(is_not, None)  # type: ignore[assignment]
_CPU = torch.device("cpu")  # said, as another default device may be in force


def _as_they_lie(*tensors: Tensor) -> Iterator[Tensor]:
    """Return tensors whose numbers are those in memory, one behind the other."""
    return map(Tensor.contiguous, map(Tensor.resolve_neg, tensors))


def find(ids: Tensor, index: Tensor, wanted: Tensor, missing: int) -> Tensor:
    """See ``reference.find``."""
    (wanted,) = _as_they_lie(wanted)
    rows = torch.empty_like(wanted)
    _lib.id_map_find(ids, index, wanted, missing, rows, torch.get_num_threads())
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
    (batch,) = _as_they_lie(batch)
    rows = torch.empty_like(batch)
    history = history_ids, history_counts, history_last, history_index, history_size
    state = ids, index, counts, last, *history, totals
    _lib.id_map_count(*state, batch, now, missing, rows, torch.get_num_threads())
    _mark_written(*history, totals, counts, last)
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
    if scores.dtype not in (torch.int64, torch.float64):
        raise TypeError(f"`scores` should be int64 or float64. Received {scores.dtype}.")
    room = min(candidates.numel(), ids.numel())
    rows, chosen, evicted = ids.new_empty(room), ids.new_empty(room), ids.new_empty(room)
    competing = _as_they_lie(scores, candidates, candidate_scores)
    result = rows, chosen, evicted, torch.get_num_threads()
    changed, lost = _lib.id_map_replace(ids, occupied, index, *competing, *result)
    _mark_written(ids, occupied, index)
    return rows.narrow(0, 0, changed), chosen.narrow(0, 0, changed), evicted.narrow(0, 0, lost)


def exchange(
    ids: Tensor,
    occupied: Tensor,
    index: Tensor,
    counts: Tensor | None,
    last: Tensor | None,
    history_ids: Tensor,
    history_counts: Tensor,
    history_last: Tensor,
    history_index: Tensor,
    history_size: Tensor,
    scores: Tensor,
    candidate_scores: Tensor,
    admitted: Tensor | None,
    batch: Tensor,
    found: Tensor,
    missing: int,
) -> tuple[Tensor, int]:
    """See ``exchange_ids``."""
    came = candidate_scores.numel()
    ids_came, counts_came, last_came = (
        history_ids[:came],
        history_counts[:came],
        history_last[:came],
    )
    if admitted is not None:
        ids_came, counts_came, last_came = (
            ids_came[admitted],
            counts_came[admitted],
            last_came[admitted],
        )
        candidate_scores = candidate_scores[admitted]
    scores, candidate_scores, batch = _as_they_lie(scores, candidate_scores, batch)
    changed = torch.empty(min(ids_came.numel(), ids.numel()), dtype=torch.int64, device=_CPU)
    rows, evicted = _lib.id_map_exchange(
        *(ids, occupied, index, counts, last, scores),
        *(ids_came, counts_came, last_came, candidate_scores),
        *(history_index, history_size),
        *(batch, found, missing, changed, torch.get_num_threads()),
    )
    _mark_written(ids, occupied, index, counts, last, history_index, history_size, found)
    return changed.narrow(0, 0, rows), evicted


def insert_(ids: Tensor, occupied: Tensor, index: Tensor, new: Tensor, rows: Tensor) -> None:
    """See ``reference.insert_``."""
    _lib.id_map_insert(ids, occupied, index, *_as_they_lie(new, rows))
    _mark_written(ids, occupied, index)


def erase_(ids: Tensor, occupied: Tensor, index: Tensor, rows: Tensor) -> None:
    """See ``reference.erase_``."""
    _lib.id_map_erase(ids, occupied, index, *_as_they_lie(rows))
    _mark_written(occupied, index)


def rebuild_(ids: Tensor, rows: Tensor, index: Tensor) -> None:
    """See ``reference.rebuild_``."""
    _lib.id_map_rebuild(ids, index, *_as_they_lie(rows))
    _mark_written(index)


def _mark_written(*tensors: Tensor | None) -> None:
    """Tell autograd, as kernels write behind PyTorch's back."""
    torch.autograd.graph.increment_version(list(filter(_is_there, tensors)))
