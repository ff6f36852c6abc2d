"""Id maps: which row of a table an id holds, for ids without bounds.

An ``IdMap`` gives E rows to ids, any int64, by an open-addressing hash table. Ids without a row are counted in a
``History``; from time to time ``replace_ids`` lets them compete for rows with those that hold one, by scores of the
caller's choice (how often, how recently). All state is plain tensors, which the functions with a verb change in place:

    rows = count_ids(id_map, history, batch, now, totals, counts=counts)     # every batch
    n = int(history.size)                                                    # every so many batches
    replaced = replace_ids(id_map, counts, history.ids[:n], history.counts[:n])
    counts[replaced.rows] = history.counts[replaced.chosen]
    clear_history(history)

Results are exact for every int64 and do not depend on the number of threads. Two states that went through the same
calls on different backends hold the same ids in the same rows; only the arrangement of the index may differ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import shortcut
from torchrec.ops.collision import schema
from torchrec.ops.collision.state import (
    MAX_ROWS,
    Counted,
    Exchanged,
    History,
    IdMap,
    Replaced,
    index_size,
    new_history,
    new_id_map,
)

__all__ = [
    "MAX_ROWS",
    "Counted",
    "Exchanged",
    "History",
    "IdMap",
    "Replaced",
    "clear_history",
    "count_ids",
    "counted_in",
    "erase_rows",
    "exchange_ids",
    "find_ids",
    "index_size",
    "insert_ids",
    "new_history",
    "new_id_map",
    "rebuild_index",
    "replace_ids",
    "reserve",
    "restore_history",
]


def _integers(name: str, ids: Tensor) -> Tensor:
    if ids.dtype is torch.int64:
        return ids
    if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
        raise TypeError(f"`{name}` should be integers. Received {ids.dtype}.")
    return ids.long()


def find_ids(id_map: IdMap, ids: Tensor, missing: int = -1) -> Tensor:
    """Look up the row of each id. Changes nothing.

    Args:
        id_map: the map.
        ids: ``[N]`` integers, any of which may come several times.
        missing: what stands for an id without a row. Default -1.

    Returns:
        ``[N]`` int64.

    Raises:
        TypeError: ids are not integers.

    Example:
        >>> id_map = new_id_map(4)
        >>> insert_ids(id_map, torch.tensor([-7, 2**63 - 1]), torch.tensor([3, 0]))
        >>> find_ids(id_map, torch.tensor([2**63 - 1, 5, -7]))
        tensor([ 0, -1,  3])
    """
    ids = _integers("ids", ids)
    rows: Tensor = schema.id_map_find(id_map.ids, id_map.entries, ids, missing)
    return rows


def count_ids(
    id_map: IdMap,
    history: History,
    ids: Tensor,
    now: int,
    totals: Tensor,
    *,
    counts: Tensor | None = None,
    last: Tensor | None = None,
    missing: int = -1,
) -> Tensor:
    """Look up the row of each id, and count each occurrence: with the row, or in the history.

    Which id holds which row stays as it is. A history that is full forgets: further distinct ids are counted in
    ``totals`` alone. Call ``reserve`` before, to have room.

    Args:
        id_map: the map.
        history: of ids without a row.
        ids: ``[N]`` integers.
        now: number of the iteration.
        totals: ``[3]`` int64, to which are added the occurrences of ids with a row, of ids without one, and, of the
            latter, of those that the history had no room for.
        counts: ``[E]`` int64, to which one is added for each occurrence of the row's id; None: not wanted.
        last: ``[E]`` int64, which becomes ``now`` where the row's id occurs; None: not wanted.
        missing: what stands for an id without a row. Default -1.

    Returns:
        ``[N]`` int64, the rows.

    Raises:
        TypeError: ids are not integers.

    Example:
        >>> id_map, history = new_id_map(4), new_history(10)
        >>> insert_ids(id_map, torch.tensor([20]), torch.tensor([3]))
        >>> counts, totals = torch.zeros(4, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
        >>> count_ids(id_map, history, torch.tensor([20, 5, 20, 5, 8]), 1, totals, counts=counts)
        tensor([ 3, -1,  3, -1, -1])
        >>> counts, totals
        (tensor([0, 0, 0, 2]), tensor([2, 3, 0]))
        >>> history.ids[:2], history.counts[:2]
        (tensor([5, 8]), tensor([2, 1]))
    """
    if ids.dtype is not torch.int64:
        ids = _integers("ids", ids)
    arguments = (id_map.ids, id_map.entries, counts, last, *history, totals, ids, now, missing)
    rows: Tensor = schema.id_map_count_(*arguments)
    return rows


def reserve(history: History, more: int, limit: int = MAX_ROWS) -> History:
    """Return a history with room for ``more`` further distinct ids: this one, or a copy twice as large as needed.

    Call it with the size of each batch. The memory of a history is then bounded by the distinct ids that it holds, and
    by the limit.

    Args:
        history: the history.
        more: number of ids that may come.
        limit: most distinct ids that are to be remembered.

    Returns:
        The history to go on with.

    Example:
        >>> history = reserve(new_history(1), 20)
        >>> history.ids.numel(), int(history.size)
        (40, 0)
    """
    capacity, size = history.ids.numel(), int(history.size)
    needed = min(size + more, limit)
    if needed <= capacity:
        return history
    ids, counts, last = (tensor[:size] for tensor in (history.ids, history.counts, history.last))
    return _copied(ids, counts, last, min(2 * needed, limit))


def restore_history(ids: Tensor, counts: Tensor, last: Tensor) -> History:
    """Return a history of these ids, counts and iterations, as another one had them: the way back from a checkpoint.

    Args:
        ids: ``[n]`` int64, distinct.
        counts: ``[n]`` int64.
        last: ``[n]`` int64.

    Returns:
        A history of its own memory.

    Raises:
        ValueError: sizes differ, or an id comes twice.

    Example:
        >>> history = restore_history(torch.tensor([8, 5]), torch.tensor([1, 2]), torch.tensor([4, 4]))
        >>> history.ids, int(history.size)
        (tensor([8, 5]), 2)
    """
    if not ids.shape == counts.shape == last.shape:
        raise ValueError(
            "`ids`, `counts` and `last` should be as many. "
            f"Received {ids.numel()}, {counts.numel()} and {last.numel()}."
        )
    _require_distinct("ids", ids)
    return _copied(ids, counts, last, ids.numel())


def _copied(ids: Tensor, counts: Tensor, last: Tensor, capacity: int) -> History:
    size, history = ids.numel(), new_history(max(capacity, 1), ids.device)
    history.ids[:size] = ids
    history.counts[:size] = counts
    history.last[:size] = last
    history.size.fill_(size)
    rows = torch.arange(size, device=ids.device)
    schema.id_map_rebuild_(history.ids, rows, history.entries)
    return history


def counted_in(history: History) -> Counted:
    """Return the ids of a history with their counts, as far as it is in use: views.

    Example:
        >>> counted_in(new_history(5)).ids
        tensor([], dtype=torch.int64)
    """
    size = int(history.size)
    return Counted(history.ids[:size], history.counts[:size], history.last[:size])


def clear_history(history: History) -> None:
    """Forget all ids of a history; its memory stays.

    Example:
        >>> clear_history(new_history(5))
    """
    history.entries.zero_()
    history.size.zero_()


def replace_ids(
    id_map: IdMap, scores: Tensor, candidates: Tensor, candidate_scores: Tensor
) -> Replaced:
    """Let candidates compete for rows with the ids that hold one: the E highest scores have them afterwards.

    Of equal scores, an id that holds a row goes before one that does not; then the lower row, or the earlier
    candidate. Ids that keep their rows keep the same ones. Winners take free rows in ascending order, then those of
    evicted ids. What else belongs to a row (counts, weights, state of an optimizer) is for the caller to set.

    Args:
        id_map: the map.
        scores: ``[E]`` int64 or float64, of the ids that hold rows; those of free rows are not read.
        candidates: ``[C]`` int64, distinct ids, none of them in the map.
        candidate_scores: ``[C]`` of the dtype of the scores.

    Returns:
        Rows with a new id, which candidates they are, and the ids that were evicted.

    Raises:
        TypeError: dtypes of the scores are not int64 or float64, or differ.
        ValueError: sizes do not fit.

    Example:
        >>> id_map, scores = new_id_map(2), torch.tensor([4, 2])
        >>> insert_ids(id_map, torch.tensor([10, 20]), torch.tensor([0, 1]))
        >>> replace_ids(id_map, scores, torch.tensor([30, 40, 50]), torch.tensor([2, 1, 3]))
        Replaced(rows=tensor([1]), chosen=tensor([2]), evicted=tensor([20]))
        >>> id_map.ids
        tensor([10, 50])
    """
    _check_scores(id_map, scores, candidates, candidate_scores)
    candidates = _integers("candidates", candidates)
    return Replaced(*schema.id_map_replace_(*id_map, scores, candidates, candidate_scores))


def exchange_ids(
    id_map: IdMap,
    history: History,
    scores: Tensor,
    candidate_scores: Tensor,
    batch: Tensor,
    found: Tensor,
    *,
    counts: Tensor | None = None,
    last: Tensor | None = None,
    admitted: Tensor | None = None,
    missing: int = -1,
) -> Exchanged:
    """Let the ids of a history compete for rows, as ``replace_ids`` does, and forget it; then find a batch again.

    Ids that win bring their counts along.

    Args:
        id_map: the map.
        history: of ids without a row; empty afterwards.
        scores: ``[E]`` int64 or float64, of the ids that hold rows; ``counts`` or ``last`` themselves, if you like.
        candidate_scores: ``[C]`` of the dtype of the scores, of the ids of the history.
        batch: ``[N]`` int64, a batch that was looked up before.
        found: ``[N]`` int64, what was found: becomes what ``find_ids`` finds now.
        counts: ``[E]`` int64, which becomes that of the history where one of its ids wins; None: not wanted.
        last: ``[E]`` int64, likewise.
        admitted: ``[C]`` bool, which ids of the history may compete. Default: all.
        missing: what stands for an id without a row. Default -1.

    Returns:
        Rows with a new id, and how many ids were evicted.

    Raises:
        TypeError: dtypes of the scores are not int64 or float64, or differ.
        ValueError: sizes do not fit.

    Example:
        >>> id_map, counts = new_id_map(2), torch.tensor([4, 2])
        >>> insert_ids(id_map, torch.tensor([10, 20]), torch.tensor([0, 1]))
        >>> batch = torch.tensor([20, 40, 10])
        >>> history = restore_history(torch.tensor([30, 40]), torch.tensor([2, 3]), torch.tensor([7, 7]))
        >>> found = find_ids(id_map, batch)
        >>> scores = counted_in(history).counts
        >>> exchange_ids(id_map, history, counts, scores, batch, found, counts=counts)
        Exchanged(rows=tensor([1]), evicted=1)
        >>> found, counts
        (tensor([-1,  1,  0]), tensor([4, 3]))
    """
    _check_scores(id_map, scores, history.ids[: int(history.size)], candidate_scores)
    if admitted is not None and admitted.shape != candidate_scores.shape:
        raise ValueError(
            f"`admitted` should be one a candidate ({candidate_scores.numel()}). "
            f"Received {list(admitted.shape)}."
        )
    if found.shape != batch.shape:
        raise ValueError(
            f"`found` should be one an id of the batch ({batch.numel()}). Received {list(found.shape)}."
        )
    state = (*id_map, counts, last, *history)
    given = (scores, candidate_scores, admitted, batch, found, missing)
    return Exchanged(*_exchange(*state, *given))


def _compose_exchange(
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
    history = History(history_ids, history_counts, history_last, history_index, history_size)
    came = counted_in(history)
    if admitted is not None:
        came = Counted(*(tensor[admitted] for tensor in came))
        candidate_scores = candidate_scores[admitted]
    id_map = IdMap(ids, occupied, index)
    rows, chosen, evicted = replace_ids(id_map, scores, came.ids, candidate_scores)
    for kept, brought in ((counts, came.counts), (last, came.last)):
        if kept is not None:
            kept[rows] = brought[chosen]
    clear_history(history)
    found.copy_(find_ids(id_map, batch, missing))
    return rows, evicted.numel()


_exchange: Any = _compose_exchange
if schema.kernels is not None:
    # Decided by the map and by what comes with the call; all else is where the map is.
    decided_by = (0, 10, 11, 12, 13, 14)
    _exchange = shortcut(schema.kernels.exchange, composed=_compose_exchange, tensors=decided_by)


def _check_scores(
    id_map: IdMap, scores: Tensor, candidates: Tensor, candidate_scores: Tensor
) -> None:
    if scores.dtype not in (torch.int64, torch.float64) or candidate_scores.dtype != scores.dtype:
        raise TypeError(
            "`scores` and `candidate_scores` should both be int64 or both float64. "
            f"Received {scores.dtype} and {candidate_scores.dtype}."
        )
    if scores.shape != id_map.ids.shape:
        raise ValueError(
            f"`scores` should be one a row ({id_map.ids.numel()}). Received {list(scores.shape)}."
        )
    if candidate_scores.shape != candidates.shape:
        raise ValueError(
            f"`candidate_scores` should be one a candidate ({candidates.numel()}). "
            f"Received {list(candidate_scores.shape)}."
        )


def insert_ids(id_map: IdMap, ids: Tensor, rows: Tensor) -> None:
    """Give free rows to ids that have none.

    Args:
        id_map: the map.
        ids: ``[N]`` integers, distinct, none of them in the map.
        rows: ``[N]`` integers in ``[0, E)``, distinct, all of them free.

    Raises:
        TypeError: ids or rows are not integers.
        IndexError: a row is out of range.
        ValueError: an id or a row comes twice, has a row, or is held; or numbers of ids and rows differ.

    Example:
        >>> id_map = new_id_map(4)
        >>> insert_ids(id_map, torch.tensor([5, -1]), torch.tensor([2, 0]))
        >>> id_map.occupied
        tensor([ True, False,  True, False])
    """
    ids, rows = _integers("ids", ids), _rows(id_map, rows)
    if ids.shape != rows.shape:
        raise ValueError(
            f"`ids` and `rows` should be as many. Received {ids.numel()} and {rows.numel()}."
        )
    _require_distinct("ids", ids)
    _require_none("`rows` should be free", rows, id_map.occupied[rows])
    _require_none("`ids` should have no row yet", ids, find_ids(id_map, ids) >= 0)
    schema.id_map_insert_(*id_map, ids, rows)


def erase_rows(id_map: IdMap, rows: Tensor) -> None:
    """Take rows from the ids that hold them.

    Args:
        id_map: the map.
        rows: ``[N]`` integers in ``[0, E)``, distinct, all of them held.

    Raises:
        TypeError: rows are not integers.
        IndexError: a row is out of range.
        ValueError: a row comes twice, or is free.

    Example:
        >>> id_map = new_id_map(4)
        >>> insert_ids(id_map, torch.tensor([5, -1]), torch.tensor([2, 0]))
        >>> erase_rows(id_map, torch.tensor([2]))
        >>> find_ids(id_map, torch.tensor([5, -1]))
        tensor([-1,  0])
    """
    rows = _rows(id_map, rows)
    _require_none("`rows` should be held", rows, ~id_map.occupied[rows])
    schema.id_map_erase_(*id_map, rows)


def rebuild_index(id_map: IdMap) -> None:
    """Make the index anew from ``ids`` and ``occupied``, after these were loaded or moved.

    Raises:
        ValueError: two rows have the same id.

    Example:
        >>> id_map = new_id_map(4)
        >>> id_map.ids[1], id_map.occupied[1] = 77, True
        >>> rebuild_index(id_map)
        >>> find_ids(id_map, torch.tensor([77]))
        tensor([1])
    """
    rows = id_map.occupied.nonzero().squeeze(1)
    _require_distinct("ids", id_map.ids[rows])
    schema.id_map_rebuild_(id_map.ids, rows, id_map.entries)


def _rows(id_map: IdMap, rows: Tensor) -> Tensor:
    rows = _integers("rows", rows)
    end = id_map.ids.numel()
    outside = (rows < 0) | (rows >= end)
    if bool(outside.any()):
        raise IndexError(f"`rows` should be in [0, {end}). Received {int(rows[outside][0])}.")
    _require_distinct("rows", rows)
    return rows


def _require_distinct(name: str, values: Tensor) -> None:
    ordered = values.sort().values
    _require_none(f"`{name}` should be distinct", ordered[1:], ordered[1:] == ordered[:-1])


def _require_none(requirement: str, values: Tensor, faulty: Tensor) -> None:
    if bool(faulty.any()):
        raise ValueError(f"{requirement}. Received {int(values[faulty][0])}.")
