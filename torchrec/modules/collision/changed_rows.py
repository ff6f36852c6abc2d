"""Rows that changed hands: added up until they are reset, and kept from look-ups that run again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchrec.optim.backward_pass import backward_pass_number


class ChangedRows:
    """Rows that another id holds than before, in bounded memory however long nobody asks.

    Args:
        size: how many different rows there can be.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._parts: list[Tensor] = []

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, rows: Tensor) -> None:
        """Add the rows of one eviction, which may be none: that there was one is news."""
        if rows.numel() or not self._parts:
            self._parts.append(rows)
        if len(self._parts) > 1 and sum(part.numel() for part in self._parts) > self._size:
            self._parts = [torch.cat(self._parts).unique()]

    def take(self) -> Tensor | None:
        """Return the rows, distinct, and start anew; None: there was no eviction."""
        parts, self._parts = self._parts, []
        if len(parts) > 1:
            distinct: Tensor = torch.cat(parts).unique()
            return distinct
        return parts[0] if parts else None

    def held_in(self, rows: Tensor) -> Tensor:
        """Return those of some rows that are among these, distinct."""
        if not self._parts:
            return rows[:0]
        among: Tensor = rows[torch.isin(rows, torch.cat(self._parts))].unique()
        return among

    def move(self, to: Callable[[Tensor], Tensor]) -> None:
        """Move the rows, as ``nn.Module._apply`` moves tensors."""
        self._parts = [to(part) for part in self._parts]


def random_states(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that a map on this device may draw from."""
    states = [torch.get_rng_state()]
    if device.type not in ("cpu", "meta"):
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def _set_random_states(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module(device).set_rng_state(states[1], device)


def _same(states: list[Tensor], others: list[Tensor]) -> bool:
    return all(map(torch.equal, states, others))


class FirstPass:
    """A forward pass: what was looked up and found, and which rows changed hands since.

    Filters and policies may have drawn random numbers, which a recomputation does not: it has to
    go on behind them, so that what is drawn next (dropout, say) is what was drawn in the first pass.
    """

    def __init__(self, ids: Tensor, rows: Tensor, size: int, before: list[Tensor]) -> None:
        self.ids = ids.clone()  # callers may write to both
        self.rows = rows.clone()
        self.changed = ChangedRows(size)
        self.recomputed_in: int | None = None  # which backward pass
        self._random_before = before
        self._random_after = random_states(ids.device)

    def skip_random_numbers(self) -> None:
        """Go on behind what the first pass drew, if random numbers are where they were before it."""
        if _same(self._random_before, self._random_after):
            return
        if _same(self._random_before, random_states(self.ids.device)):
            _set_random_states(self._random_after, self.ids.device)


class FirstPasses:
    """The last training look-ups of a map whose forward passes may run again in the backward pass.

    A recomputation must see the rows of its first pass, or its gradient is that of another function.
    The map cannot be asked: by then it may have advanced, as several forward passes may come before
    a backward pass. So rows are kept, and found again by the ids: nothing else connects the two
    passes, as the tensors may be other ones. They are few, as PyTorch does not say when a graph is
    gone.

    A row that another id holds by now has lost the vector that the first pass read. Then there is no
    right gradient, and the recomputation is refused.

    Args:
        table: name of the table, for messages.
        size: rows of the map.
    """

    LIMIT = 32

    def __init__(self, table: str, size: int) -> None:
        self._table = table
        self._size = size
        self._passes: deque[FirstPass] = deque(maxlen=self.LIMIT)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy nothing: the graphs that may ask belong to the original."""
        return FirstPasses, (self._table, self._size)

    def add(self, ids: Tensor, rows: Tensor, before: list[Tensor]) -> None:
        """Remember a pass: its ids, the rows that it is to see again, and `random_states` before it.

        Those that ran again in a backward pass that is over are forgotten: each holds all its ids.
        """
        now = backward_pass_number()
        over = [past for past in self._passes if past.recomputed_in not in (None, now)]
        for past in over:
            self._passes.remove(past)
        self._passes.append(FirstPass(ids, rows, self._size, before))

    def change(self, rows: Tensor) -> None:
        """Take note of rows that changed hands."""
        for past in self._passes:
            past.changed.add(rows)

    def clear(self) -> None:
        """Forget all: the state of the map is another one."""
        self._passes.clear()

    def find(self, ids: Tensor) -> Tensor:
        """Return the rows that these ids had in their first pass.

        Raises:
            RuntimeError: if there was none; if the rows were others in another pass, so that it is
                not known which one runs again; or if one has another id by now.
        """
        same = [past for past in self._passes if torch.equal(past.ids, ids)]
        # One that ran again is over, but for checkpoints in checkpoints: in the same backward pass.
        now = backward_pass_number()
        same = [past for past in same if past.recomputed_in in (None, now)] or same[-1:]
        if not same:
            raise RuntimeError(
                f"A training look-up in table '{self._table}' inside a backward pass should be a "
                "forward pass that runs again (activation checkpointing), among the last "
                f"{self.LIMIT}. Received {ids.numel()} ids that were not looked up together."
            )
        if any(not torch.equal(past.rows, same[-1].rows) for past in same):
            raise RuntimeError(
                f"Training look-ups of the same ids in table '{self._table}' that activation "
                "checkpointing runs again should have found the same rows. Received "
                f"{len(same)} before their backward passes, with evictions in between."
            )
        past = same[-1]
        lost = past.changed.held_in(past.rows)
        if lost.numel():
            raise RuntimeError(
                f"Rows of table '{self._table}' should keep their ids until the forward pass that "
                "looked them up runs again in its backward pass (activation checkpointing). "
                f"Received {lost.numel()} that a later look-up gave to other ids: call backward() "
                "before it."
            )
        past.recomputed_in = now
        past.skip_random_numbers()
        return past.rows.clone()
