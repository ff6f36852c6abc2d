"""The id map in plain PyTorch, on any device: the specification of the kernels.

An index is an open-addressing hash table with linear probing. An entry is 0, or a row + 1 with bits of the id's hash
above it, by which most other ids are told apart without reading them. No step loops over ids: each round of a loop
takes one probe of every search that goes on.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST = -0x3B314601E57A13AD  # odd, as int64: 0xC4CEB9FE1A85EC53
_SECOND = -0x00AE502812AA7333  # 0xFF51AFD7ED558CCD


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift as unsigned numbers are."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_of(ids: Tensor) -> Tensor:
    """Mix the bits of each id: one to one, so that no two ids have the same hash."""
    x = (ids ^ _shift_right(ids, 32)) * _SECOND
    x = (x ^ _shift_right(x, 29)) * _FIRST
    return x ^ _shift_right(x, 32)


def _row_bits(rows: int) -> int:
    return rows.bit_length()


def _homes(hashes: Tensor, index: Tensor) -> Tensor:
    """Return the position at which the search for each hash begins: its highest bits."""
    return _shift_right(hashes, 64 - (index.numel() - 1).bit_length())


def find(ids: Tensor, index: Tensor, wanted: Tensor, missing: int) -> Tensor:
    """Return the row of each wanted id, or ``missing``."""
    rows = torch.full_like(wanted, missing)
    mask = (1 << _row_bits(ids.numel())) - 1
    searching = torch.arange(wanted.numel(), device=wanted.device)
    positions = _homes(hash_of(wanted), index)
    for _ in range(index.numel()):
        if not searching.numel():
            break
        row = (index[positions].long() & mask) - 1
        same = (row >= 0) & (ids[row.clamp(0, ids.numel() - 1)] == wanted[searching])
        rows[searching[same]] = row[same]
        on = (row >= 0) & ~same
        searching = searching[on]
        positions = (positions[on] + 1) & (index.numel() - 1)
    return rows


def _enter(ids: Tensor, index: Tensor, rows: Tensor) -> None:
    """Enter rows, whose ids are not in the index."""
    bits = _row_bits(ids.numel())
    hashes = hash_of(ids[rows])
    entries = ((rows + 1) | (hashes << bits)).int()
    positions = _homes(hashes, index)
    while entries.numel():
        free = index[positions] == 0
        index[positions[free]] = entries[free]  # where several want one place, one of them gets it
        on = index[positions] != entries
        entries = entries[on]
        positions = (positions[on] + 1) & (index.numel() - 1)


def rebuild_(ids: Tensor, rows: Tensor, index: Tensor) -> None:
    """Fill the index with these rows, and nothing else."""
    index.zero_()
    _enter(ids, index, rows)


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
    """Look up a batch and count it, in the map or in the history; see ``torchrec.ops.collision.count_ids``."""
    rows = find(ids, index, batch, -1)
    present = rows >= 0
    hits = rows[present]
    if counts is not None:
        counts.index_add_(0, hits, torch.ones_like(hits))
    if last is not None:
        last[hits] = now
    absent = batch[~present]
    new = absent[find(history_ids, history_index, absent, -1) < 0]
    distinct, inverse = new.unique(return_inverse=True)
    first = torch.full_like(distinct, new.numel())
    first.scatter_reduce_(0, inverse, torch.arange(new.numel(), device=new.device), "amin")
    size = int(history_size)
    new = distinct[first.argsort()][: history_ids.numel() - size]
    added = slice(size, size + new.numel())
    history_ids[added] = new
    history_counts[added] = 0
    history_size += new.numel()
    _enter(history_ids, history_index, torch.arange(added.start, added.stop, device=new.device))
    places = find(history_ids, history_index, absent, -1)
    remembered = places[places >= 0]
    history_counts.index_add_(0, remembered, torch.ones_like(remembered))
    history_last[remembered] = now
    numbers = [hits.numel(), absent.numel(), absent.numel() - remembered.numel()]
    totals += torch.tensor(numbers, device=totals.device)
    return torch.where(present, rows, missing)


def replace_(
    ids: Tensor,
    occupied: Tensor,
    index: Tensor,
    scores: Tensor,
    candidates: Tensor,
    candidate_scores: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Let candidates compete for rows; see ``torchrec.ops.collision.replace_ids``."""
    held = occupied.nonzero().squeeze(1)
    # A stable sort is the rule for equal scores: who holds a row is before who does not.
    order = torch.cat([scores[held], candidate_scores]).sort(descending=True, stable=True).indices
    stays = torch.zeros_like(order, dtype=torch.bool)
    stays[order[: ids.numel()]] = True
    lost = held[~stays[: held.numel()]]
    chosen = stays[held.numel() :].nonzero().squeeze(1)
    evicted = ids[lost]
    rows = torch.cat([(~occupied).nonzero().squeeze(1)[: chosen.numel() - lost.numel()], lost])
    ids[rows] = candidates[chosen]
    occupied[rows] = True
    rebuild_(ids, occupied.nonzero().squeeze(1), index)
    return rows, chosen, evicted


def insert_(ids: Tensor, occupied: Tensor, index: Tensor, new: Tensor, rows: Tensor) -> None:
    """Give free rows to ids that are not in the map."""
    ids[rows] = new
    occupied[rows] = True
    _enter(ids, index, rows)


def erase_(ids: Tensor, occupied: Tensor, index: Tensor, rows: Tensor) -> None:
    """Free rows that are held."""
    occupied[rows] = False
    rebuild_(ids, occupied.nonzero().squeeze(1), index)
