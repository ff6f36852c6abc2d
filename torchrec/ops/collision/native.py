"""The operators of id maps on the native library: what guards memory, and addresses.

The kernels take the values of tensors on trust but for one thing: whatever an index holds, no search leaves the map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native
from torchrec.ops._memory import Memory, address_of, addresses_of, kept_addresses_of
from torchrec.ops.collision.state import index_size

_lib: Any = native
_ID, _ENTRY = torch.int64, torch.int32
_CPU = torch.device("cpu")  # said, as another default device may be in force
_written = (
    torch.autograd.graph.increment_version
)  # kernels write behind PyTorch's back; autograd has to know


def find(ids: Tensor, index: Tensor, wanted: Tensor, missing: int) -> Tensor:
    """See ``reference.find``."""
    wanted = wanted.contiguous()
    rows = torch.empty_like(wanted)
    if wanted.dim() != 1:
        wanted = wanted.flatten()
    size, entries, count = ids.numel(), index_size(ids.numel()), wanted.numel()
    map_ids, map_index, source = addresses_of(
        ("ids", ids, size, _ID), ("index", index, entries, _ENTRY), ("wanted", wanted, count, _ID)
    )
    threads = torch.get_num_threads()
    _lib.id_map_find(
        map_ids, size, map_index, entries, source, count, missing, rows.data_ptr(), threads
    )
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
    rows = torch.empty_like(batch)
    if batch.dim() != 1:
        batch = batch.flatten()
    size, entries, count = ids.numel(), index_size(ids.numel()), batch.numel()
    room, history_entries = history_ids.numel(), index_size(history_ids.numel())
    map_ids, map_index, past_ids, past_index, *rest = kept_addresses_of(
        ("ids", ids, size, _ID),
        ("index", index, entries, _ENTRY),
        ("history_ids", history_ids, room, _ID),
        ("history_index", history_index, history_entries, _ENTRY),
        ("history_counts", history_counts, room, _ID),
        ("history_last", history_last, room, _ID),
        ("history_size", history_size, 1, _ID),
        ("totals", totals, 3, _ID),
        ("counts", counts, size, _ID),
        ("last", last, size, _ID),
    )
    *past, kept_counts, kept_last = rest
    source = address_of("batch", batch, count, _ID)
    _lib.id_map_count(
        map_ids,
        size,
        map_index,
        entries,
        kept_counts,
        kept_last,
        past_ids,
        room,
        past_index,
        history_entries,
        *past,
        source,
        count,
        now,
        missing,
        rows.data_ptr(),
        torch.get_num_threads(),
    )
    written = [history_ids, history_counts, history_last, history_index, history_size, totals]
    if counts is not None:
        written.append(counts)
    if last is not None:
        written.append(last)
    _written(written)
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
    size, count, dtype = ids.numel(), candidates.numel(), scores.dtype
    if dtype not in (torch.int64, torch.float64):
        raise TypeError(f"`scores` should be int64 or float64. Received {dtype}.")
    room = min(count, size)
    rows, chosen, evicted = ids.new_empty(room), ids.new_empty(room), ids.new_empty(room)
    *state, new = _map(
        ids,
        occupied,
        index,
        ("scores", scores, size, dtype),
        ("candidate_scores", candidate_scores, count, dtype),
        ("candidates", candidates, count, _ID),
    )
    changed, lost = _lib.id_map_replace(
        *state,
        dtype is torch.float64,
        new,
        count,
        rows.data_ptr(),
        chosen.data_ptr(),
        evicted.data_ptr(),
        torch.get_num_threads(),
    )
    _written([ids, occupied, index])
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
    size, room, came = ids.numel(), history_ids.numel(), candidate_scores.numel()
    history_entries, dtype = index_size(room), scores.dtype
    occupied_at, ids_at, index_at, *past, past_index, past_size, counts_at, last_at = (
        kept_addresses_of(
            (
                "occupied",
                occupied,
                size,
                torch.bool,
            ),  # first, as the name of what `count_` keeps is another
            ("ids", ids, size, _ID),
            ("index", index, index_size(size), _ENTRY),
            ("history_ids", history_ids, room, _ID),
            ("history_counts", history_counts, room, _ID),
            ("history_last", history_last, room, _ID),
            ("history_index", history_index, history_entries, _ENTRY),
            ("history_size", history_size, 1, _ID),
            ("counts", counts, size, _ID),
            ("last", last, size, _ID),
        )
    )
    if came > room:
        raise ValueError(
            f"`candidate_scores` should be one an id of the history, of at most {room}. Received {came}."
        )
    competing = [history_ids, history_counts, history_last]
    if admitted is not None:
        competing = [tensor[:came][admitted] for tensor in competing]
        candidate_scores = candidate_scores[admitted]
        came = candidate_scores.numel()
        past = [tensor.data_ptr() for tensor in competing]
    batch, scores = batch.contiguous(), scores.contiguous()
    candidate_scores = candidate_scores.contiguous()
    asked = batch.numel()
    scores_at, candidates_at, batch_at, found_at = addresses_of(
        ("scores", scores, size, dtype),
        ("candidate_scores", candidate_scores, came, dtype),
        ("batch", batch, asked, _ID),
        ("found", found, asked, _ID),
    )
    changed = torch.empty(min(came, size), dtype=_ID, device=_CPU)
    rows, evicted = _lib.id_map_exchange(
        *(ids_at, size, index_at, index_size(size), occupied_at, counts_at, last_at),
        *(scores_at, candidates_at, dtype is torch.float64),
        *(*past, came, past_index, history_entries, past_size),
        *(batch_at, found_at, asked, missing),
        *(changed.data_ptr(), torch.get_num_threads()),
    )
    written = [ids, occupied, index, history_index, history_size, found]
    _written([*written, *(kept for kept in (counts, last) if kept is not None)])
    return changed.narrow(0, 0, rows), evicted


def insert_(ids: Tensor, occupied: Tensor, index: Tensor, new: Tensor, rows: Tensor) -> None:
    """See ``reference.insert_``."""
    new, rows = new.contiguous(), rows.contiguous()
    count = rows.numel()
    given = ("new", new, count, _ID), ("rows", rows, count, _ID)
    _lib.id_map_insert(*_map(ids, occupied, index, *given), count)
    _written([ids, occupied, index])


def erase_(ids: Tensor, occupied: Tensor, index: Tensor, rows: Tensor) -> None:
    """See ``reference.erase_``."""
    rows = rows.contiguous()
    count = rows.numel()
    _lib.id_map_erase(*_map(ids, occupied, index, ("rows", rows, count, _ID)), count)
    _written([occupied, index])


def rebuild_(ids: Tensor, rows: Tensor, index: Tensor) -> None:
    """See ``reference.rebuild_``."""
    rows = rows.contiguous()
    size, entries, count = ids.numel(), index_size(ids.numel()), rows.numel()
    map_ids, map_index, source = addresses_of(
        ("ids", ids, size, _ID), ("index", index, entries, _ENTRY), ("rows", rows, count, _ID)
    )
    _lib.id_map_rebuild(map_ids, size, map_index, entries, source, count)
    _written([index])


def _map(ids: Tensor, occupied: Tensor, index: Tensor, *others: Memory) -> list[int]:
    """Return a whole map as kernels take it, and the addresses of further tensors behind it."""
    size, entries = ids.numel(), index_size(ids.numel())
    map_ids, map_index, map_occupied = kept_addresses_of(
        ("ids", ids, size, _ID),
        ("index", index, entries, _ENTRY),
        ("occupied", occupied, size, torch.bool),
    )
    return [map_ids, size, map_index, entries, map_occupied, *addresses_of(*others)]
