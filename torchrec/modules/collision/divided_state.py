"""The saved state of one part of a map: by the rows of the whole, so that other parts can be made of it.

A part has fewer rows that ids can hold than rows: its last one, or its residual zone, is for the other ids. Saved are
all its rows but the last of the whole map, or all where there is a residual zone, under the names that the whole map
has; and nothing of a size that depends on what came: ids that wait for a row are written one a row, each beside a 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

ROWS = "_rows."
HISTORY = "_rows.history_"
WAITING = "_rows.history_ids"  # of a part: (rows, 2), an id and whether there is one
_COUNTS = "_rows.history_counts"
_IDS, _OCCUPIED = "_rows.ids", "_rows.occupied"

State = dict[str, Tensor]


@dataclass
class Strays:
    """Entries of a part that belong to others.

    Attributes:
        rows: of the table, int64 ``(N,)``.
        entries: what is saved of these, by name.
        waiting: what is saved of ids that wait, by name.
        left: rows of the table that an id held, and that all others share now.
    """

    rows: Tensor
    entries: State = field(default_factory=dict)
    waiting: State = field(default_factory=dict)
    left: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


def padded(own: Mapping[str, Tensor], count: int, table: str) -> State:
    """Bring the state of a part to the rows of the whole.

    Args:
        own: as the part saves it.
        count: rows of it that are saved.
        table: its name, for messages.
    """
    state = {}
    history = {name: value for name, value in own.items() if name.startswith(HISTORY)}
    kept = _most(history, count, table)
    for name, value in own.items():
        if name.startswith(ROWS):
            value = kept.get(name, value)
            value = torch.cat([value, value.new_zeros(count - len(value))])
        state[name] = value
    waits = torch.arange(count) < len(kept[WAITING])
    state[WAITING] = torch.stack([state[WAITING], waits.long()], 1)
    return state


def _most(history: State, count: int, table: str) -> State:
    """Return the ids that wait, as far as there is room: those that came most often, or else last."""
    came = len(next(iter(history.values())))
    if came <= count:
        return history
    warnings.warn(
        f"The map of table '{table}' saves {count} of the {came} ids that have come since the last eviction and "
        "hold no row: one for each of its rows.",
        stacklevel=2,
    )
    chosen = torch.arange(came - count, came)
    if _COUNTS in history:
        order = history[_COUNTS].sort(descending=True, stable=True).indices
        chosen = order[:count].sort().values
    return {name: value[chosen] for name, value in history.items()}


def waiting_of(state: State) -> State:
    """Take the ids that wait out of a saved state, whichever form they have there."""
    history = {name: state.pop(name) for name in list(state) if name.startswith(HISTORY)}
    return waiting_only(history, WAITING)


def waiting_only(history: State, ids: str) -> State:
    """Return saved ids that wait, and what is known of them, without rows that none is written in.

    Args:
        history: as it was saved.
        ids: name of the ids in it.
    """
    if ids not in history or history[ids].dim() == 1:
        return history
    waits = history[ids][:, 1] > 0
    return {n: (v[:, 0] if n == ids else v)[waits] for n, v in history.items()}


def divide(saved: State, first: int, held: int, is_mine: Tensor) -> tuple[State, Strays]:
    """Return the state of a part, and what of the saved rows does not belong to it.

    Args:
        saved: of all rows of the part that are saved; without ids that wait.
        first: its first row in the table.
        held: how many rows of it ids can hold.
        is_mine: for each row, whether the id there belongs to the part.
    """
    occupied = saved[_OCCUPIED]
    places = torch.arange(len(occupied))
    stays = occupied & is_mine & (places < held)
    strays = (occupied & ~stays).nonzero()[:, 0]
    own, entries = {}, {}
    for name, value in saved.items():
        if name.startswith(ROWS):
            entries[name] = value[strays]
            own[name] = torch.where(stays, value, torch.zeros_like(value))[:held]
    left = (occupied & (places >= held)).nonzero()[:, 0] + first
    return own, Strays(strays + first, entries, left=left)


def take_in(own: State, strays: Strays, scores: Tensor) -> tuple[State, Tensor, Tensor]:
    """Give free rows of a part to strays that belong to it.

    Args:
        own: state of the part.
        strays: the entries, and the ids that wait.
        scores: of the entries: where there are not enough rows, those with the highest get one.

    Returns:
        The state of the part with them; which of the strays have a row, ascending; and these rows of the part.
    """
    free = (~own[_OCCUPIED]).nonzero()[:, 0]
    chosen = scores.sort(descending=True, stable=True).indices[: len(free)].sort().values
    rows = free[: len(chosen)]
    state = {name: value.clone() for name, value in own.items()}
    for name, value in strays.entries.items():
        state[name][rows] = value[chosen]
    for name, value in strays.waiting.items():
        state[name] = torch.cat([state[name], value])
    return state, chosen, rows


def joined(strays: list[Strays]) -> Strays:
    """Return the strays of several parts as one, in order of their rows; at least one part."""
    rows = torch.cat([each.rows for each in strays])
    order = rows.argsort()

    def all_of(parts: list[State]) -> State:
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    entries = {n: value[order] for n, value in all_of([s.entries for s in strays]).items()}
    return Strays(
        rows[order],
        entries,
        all_of([each.waiting for each in strays]),
        torch.cat([each.left for each in strays]),
    )


def chosen(strays: Strays, entries: Tensor, waiting: Tensor) -> Strays:
    """Return some of the strays.

    Args:
        strays: all.
        entries: which of them, bool or int64.
        waiting: which of the ids that wait.
    """
    return Strays(
        strays.rows[entries],
        {name: value[entries] for name, value in strays.entries.items()},
        {name: value[waiting] for name, value in strays.waiting.items()},
    )
