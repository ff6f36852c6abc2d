"""How ids find their rows in a hash map, what is counted of it, and numbers that are kept by row."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.checks import require_type
from torchrec.modules.collision.hash_buckets import Buckets
from torchrec.modules.collision.stats import ManagedCollisionStats
from torchrec.ops.hash_collision import (
    FREE,
    Assigned,
    Eviction,
    Probing,
    assign_slots,
    find_slots,
    new_totals,
)


class HashSearch:
    """Finds ids among those of a map's rows, and enters them. The map itself is its caller's.

    A slot is a row counted from the first one of the map.

    Args:
        buckets: of the map.
        local_ids: whether ids are known by what is left of them within their bucket.
        reserved: rows at the end of each bucket that no id holds.
        max_probe: how many rows an id may have.
        fallback: whether ids without a row share one; else -1 stands for it.
    """

    def __init__(
        self, buckets: Buckets, local_ids: bool, reserved: int, max_probe: int, fallback: bool
    ) -> None:
        self.buckets = buckets
        self.probing = Probing(
            torch.tensor(buckets.starts, device="cpu"),
            buckets.total,
            buckets.first,
            buckets.ids_per_bucket,
            local_ids,
            reserved,
            max_probe,
            fallback,
        )
        self._totals = new_totals()

    def _move_to(self, device: torch.device) -> None:
        """Bring what is not the map to where the map is now."""
        if self._totals.device != device:
            self._totals = self._totals.to(device)
            self.probing = self.probing._replace(bounds=self.probing.bounds.to(device))

    def find(self, identities: Tensor, ids: Tensor, counted: bool = True) -> Tensor:
        """Return the slots of ids.

        Args:
            identities: the ids of the rows, int64 ``(E,)``.
            ids: int64 ``(N,)``.
            counted: whether `stats` is to know of it.
        """
        self._move_to(identities.device)
        totals = self._totals if counted else new_totals(identities.device)
        return find_slots(identities, self.probing, ids, totals)

    def assign(
        self,
        identities: Tensor,
        ids: Tensor,
        eviction: Eviction | None = None,
        admitted: Tensor | None = None,
    ) -> Assigned:
        """Return the slots of ids, after those that have none were given one.

        Args:
            identities: the ids of the rows, int64 ``(E,)``; changed.
            ids: int64 ``(N,)``.
            eviction: when an id takes the slot of another.
            admitted: which may be given one. Default: all.
        """
        self._move_to(identities.device)
        return assign_slots(identities, self.probing, ids, self._totals, eviction, admitted)

    def find_own(self, identities: Tensor, ids: Tensor) -> Tensor:
        """Return the slot that each id holds, -1 for none; it is not counted."""
        self._move_to(identities.device)
        probing = self.probing._replace(fallback=False)
        return find_slots(identities, probing, ids, new_totals(identities.device))

    def give(self, identities: Tensor, ids: Tensor) -> Tensor:
        """Return the slot of each id, -1 where there is no free one for it; it is not counted."""
        self._move_to(identities.device)
        probing = self.probing._replace(fallback=False)
        return assign_slots(identities, probing, ids, new_totals(identities.device)).slots

    def is_own(self, identities: Tensor, ids: Tensor, slots: Tensor) -> Tensor:
        """Say of each id whether it holds the slot beside it; no id holds one that is not of the map."""
        if ids.shape != slots.shape:
            raise ValueError(
                f"`remapped_ids` of map '{self.buckets.name}' should be a row for each of {ids.numel()} ids. "
                f"Received shape {tuple(slots.shape)}."
            )
        keys = self.buckets.rests(ids) if self.probing.local_ids else ids
        here = slots.clamp(0, identities.numel() - 1)
        return (slots == here) & (identities[here] == keys) & (keys != FREE)

    def held(self, identities: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slots that an id holds, ascending, and these ids."""
        slots = (identities != FREE).nonzero().squeeze(1)
        ids = identities[slots]
        return slots, self.buckets.whole_ids(ids, slots) if self.probing.local_ids else ids

    def validate(self, identities: Tensor) -> None:
        """Raise unless each id is found where it lies.

        Raises:
            ValueError: naming one that is not.
        """
        slots, ids = self.held(identities)
        lost = self.find_own(identities, ids) != slots
        if not bool(lost.any()):
            return
        rows, most = slots[lost] + self.buckets.first_row, self.probing.max_probe
        raise ValueError(
            f"Ids of map '{self.buckets.name}' should lie within `max_probe` ({most}) rows of the one "
            f"that their hash names. Received {int(ids[lost][0])} in row {int(rows[0])} and "
            f"{rows.numel() - 1} others: is it of a map with other buckets, or a larger `max_probe`?"
        )

    def rows_of(self, slots: Tensor) -> Tensor:
        """Return slots counted from the first row of the whole table; -1 stays."""
        first = self.buckets.first_row
        if not first:
            return slots
        return slots + first if self.probing.fallback else torch.where(slots < 0, -1, slots + first)

    def reserved_slots(self) -> Tensor:
        """Return the slots that no id holds, ascending."""
        reserved, bounds = self.probing.reserved, self.probing.bounds
        return (
            bounds[1:].unsqueeze(1) + torch.arange(-reserved, 0, device=bounds.device)
        ).flatten()

    def num_open(self, identities: Tensor) -> Tensor:
        """Return how many slots an id could hold and none does, ``(1,)``."""
        reserved = self.probing.reserved * self.buckets.here
        return (identities == FREE).sum().reshape(1) - reserved

    def stats(self, identities: Tensor, reset: bool) -> ManagedCollisionStats:
        """Return how full the map is, and what was counted since the last reset."""
        held, inserted, evicted, shared, rejected = self._totals.tolist()
        if reset:
            self._totals.zero_()
        new, rows = inserted + evicted, identities.numel()
        return ManagedCollisionStats(
            rows - self.probing.reserved * self.buckets.here,
            int((identities != FREE).sum()),
            ids=held + new + shared,
            hits=held,
            inserted=new,
            evicted=evicted,
            admitted=new + shared - rejected,
            rejected=rejected,
        )


class RowNumbers:
    """Numbers that a map keeps for each row: of the caller's, or how often its id came.

    Args:
        search: how ids find their rows.
        identities: the ids of the rows, int64 ``(E,)``.
        numbers: int64 ``(E, D)``.

    Raises:
        ValueError: for a map that keeps none.
    """

    def __init__(self, search: HashSearch, identities: Tensor, numbers: Tensor | None) -> None:
        self._name, self._first_row = search.buckets.name, search.buckets.first_row
        if numbers is None:
            raise ValueError(
                f"Map '{self._name}' should have `write_runtime_meta_dim` or `track_id_freq` to keep "
                "numbers by row."
            )
        self._search, self._identities, self._numbers = search, identities, numbers

    def write(self, ids: Tensor, rows: Tensor, numbers: Tensor) -> None:
        """Keep numbers, ``(N, D)`` or ``(N,)``, for the rows of those ids that hold them."""
        numbers = self.checked(ids, numbers)
        slots = rows - self._first_row
        own = self._search.is_own(self._identities, ids, slots)
        width = self._numbers.shape[1]
        self._numbers[slots[own]] = numbers[own].to(self._numbers).expand(-1, width)

    def checked(self, ids: Tensor, numbers: Tensor) -> Tensor:
        """Return numbers for ids as columns, or refuse them: before the map learns from the ids."""
        require_type(numbers, f"`weights` of map '{self._name}'", Tensor)
        width = self._numbers.shape[1]
        numbers = numbers.unsqueeze(1) if numbers.dim() == 1 else numbers
        if numbers.shape not in ((ids.numel(), 1), (ids.numel(), width)):
            raise ValueError(
                f"`weights` of map '{self._name}' should have {width} numbers for each of "
                f"{ids.numel()} ids. Received shape {tuple(numbers.shape)}."
            )
        return numbers

    def of_ids(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Return the numbers of rows, ``(N, D)``; -1 where the id beside it does not hold the row."""
        slots = rows - self._first_row
        own = self._search.is_own(self._identities, ids, slots)
        return torch.where(own.unsqueeze(1), self._numbers[slots.where(own, 0)], -1)

    def of_rows(self, rows: Tensor) -> Tensor:
        """Return the numbers of rows, ``(N, D)``.

        Raises:
            IndexError: for a row that is not of the map.
        """
        slots, size = rows - self._first_row, self._numbers.shape[0]
        outside = (slots < 0) | (slots >= size)
        if bool(outside.any()):
            raise IndexError(
                f"`remapped_ids` of map '{self._name}' should be in "
                f"[{self._first_row}, {self._first_row + size}). Received {int(rows[outside][0])}."
            )
        return self._numbers[slots]
