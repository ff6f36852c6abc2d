"""The id map in plain PyTorch, on any device: the specification of the kernels.

An index is a hash table from an id to its row, in groups of 16 entries. An entry is 0 where free; otherwise a row + 1,
with bits of the id's hash above it, by which the kernels tell most other ids apart without reading them. The highest
bits of the hash choose the group; where it is full, the next one has room. No step loops over ids: each round of a loop
takes one group of every search that goes on.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GROUP = 16
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


def _groups(index: Tensor) -> Tensor:
    return index.view(-1, _GROUP)


def _homes(hashes: Tensor, groups: Tensor) -> Tensor:
    """Return the group at which the search for each hash begins: its highest bits."""
    bits = (groups.shape[0] - 1).bit_length()
    return _shift_right(hashes, 64 - bits) if bits else torch.zeros_like(hashes)


def find(ids: Tensor, index: Tensor, wanted: Tensor, missing: int) -> Tensor:
    """Return the row of each wanted id, or ``missing``."""
    shape, wanted = wanted.shape, wanted.flatten()
    rows = torch.full_like(wanted, missing)
    groups, mask = _groups(index), (1 << _row_bits(ids.numel())) - 1
    searching = torch.arange(wanted.numel(), device=wanted.device)
    at = _homes(hash_of(wanted), groups)
    for _ in range(groups.shape[0]):
        if not searching.numel():
            break
        held = (groups[at].long() & mask) - 1
        known = ids[held.clamp(0, ids.numel() - 1)]
        same = (held >= 0) & (known == wanted[searching].unsqueeze(1))
        found = same.any(1)
        rows[searching[found]] = held[same]
        on = ~found & (held >= 0).all(1)
        searching = searching[on]
        at = (at[on] + 1) % groups.shape[0]
    return rows.view(shape)


def _enter(ids: Tensor, index: Tensor, rows: Tensor) -> None:
    """Enter rows, whose ids are not in the index."""
    hashes, groups = hash_of(ids[rows]), _groups(index)
    entries = ((rows + 1) | (hashes << _row_bits(ids.numel()))).int()
    at = _homes(hashes, groups)
    for _ in range(groups.shape[0]):
        if not entries.numel():
            break
        at, order = at.sort(stable=True)
        entries = entries[order]
        before = torch.arange(at.numel(), device=at.device) - torch.searchsorted(at, at)
        # Of those that want one group, the first takes its first free entry, and so on.
        nth_free = (groups[at] == 0).cumsum(1, dtype=torch.int8)
        fits = before < nth_free[:, -1]
        place = (nth_free[fits] > before[fits].unsqueeze(1)).int().argmax(1)
        groups[at[fits], place] = entries[fits]
        entries = entries[~fits]
        at = (at[~fits] + 1) % groups.shape[0]


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
