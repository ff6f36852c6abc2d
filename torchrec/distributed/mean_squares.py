"""Mean squares of the gradients of rows whose columns lie on several ranks: for row-wise Adagrad, by the kernels.

Each rank runs the update of its columns twice. The first run, with a rate of 0, leaves weights alone, and in a scratch,
as if it were the state, the mean square of the columns that are here. The ranks that hold the same rows tell each other
these numbers, one an id, as they have the same ids in the same order. The second run takes the means of whole rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchrec.distributed.wire import Wire
from torchrec.ops.embedding import KernelUpdater, LookupSpec
from torchrec.ops.embedding.hyper import LR
from torchrec.ops.routing import put_numbers_, take_numbers
from torchrec.optim.joint_update import BagGradient, LookupGradient
from torchrec.optim.table_update import TableUpdate

__all__ = ["MeanSquares", "SplitTable"]


@dataclass(frozen=True)
class SplitTable:
    """A table whose columns are split, as this rank takes part in its updates.

    Attributes:
        columns: of the whole table.
        partners: the ranks that hold the rows that this one holds, in order; empty if it holds none.
    """

    columns: int
    partners: tuple[int, ...]


@dataclass(frozen=True)
class _Run:
    """Ids, one behind the other, of tables whose rows the same ranks hold.

    Attributes:
        where: these ids among all.
        partners: the ranks.
    """

    where: slice
    partners: tuple[int, ...]


class MeanSquares:
    """Updates tables by row-wise Adagrad, with the mean squares of whole rows.

    Args:
        updates: of this rank's parts.
        tables: all whose columns are split, by name.
        wire: the ranks.
    """

    def __init__(
        self, updates: Sequence[TableUpdate], tables: Mapping[str, SplitTable], wire: Wire
    ) -> None:
        self._tables = [tables[update.table] for update in updates]
        self._wire = wire
        # One number a row; 0 but within an update, as the first run adds to what is there.
        self._means = [
            torch.zeros(len(update.weight), device=update.weight.device) for update in updates
        ]
        self._specs: dict[int, tuple[LookupSpec, LookupSpec]] = {}

    def update(
        self, lookup: LookupGradient | None, states: Sequence[Tensor], hyper: Tensor
    ) -> None:
        """Apply the gradient of a look-up; all ranks call this.

        Args:
            lookup: the gradient; None: this rank has none of the tables.
            states: of each table.
            hyper: their hyper-parameters.
        """
        if lookup is None:
            nothing = [0] * self._wire.world_size
            self._wire.swap(torch.empty(0), nothing, nothing)
            return
        measuring = hyper.clone()
        measuring[:, LR] = 0
        lookup.apply(KernelUpdater([table.unsqueeze(1) for table in self._means], measuring))
        values, slots, runs = self._ids(lookup)
        shares = [self._share(lookup.spec, t) for t in slots[::3]]
        here = take_numbers(self._means, values, slots, shares)
        put_numbers_(self._means, values, slots, self._of_whole_rows(here, runs))
        pairs = zip(states, self._means, strict=True)
        both = [each for state, table in pairs for each in (state, table.unsqueeze(1))]
        replace(lookup, spec=self._with_means(lookup.spec)).apply(KernelUpdater(both, hyper))
        put_numbers_(self._means, values, slots, None)

    def _ids(self, lookup: LookupGradient) -> tuple[Tensor, list[int], list[_Run]]:
        """Return the rows that ids chose; the slots that got a gradient, as `take_numbers` has them; and their runs."""
        if isinstance(lookup, BagGradient):
            values, keys = lookup.bags.values, lookup.spec.num_keys
            size = (len(lookup.bags.offsets) - 1) // keys
            ends = lookup.bags.offsets[::size].tolist() if size else [0] * (keys + 1)
            starts = [ends[slot.key] for slot in lookup.spec.slots]
            counts = [ends[slot.key + 1] - ends[slot.key] for slot in lookup.spec.slots]
        else:
            values, starts = lookup.ids.values, list(lookup.ids.starts)
            counts = [
                0 if grad is None else count
                for count, grad in zip(lookup.ids.counts, lookup.grads, strict=True)
            ]
        slots, runs, at = list[int](), list[_Run](), 0
        for slot, start, count in zip(lookup.spec.slots, starts, counts, strict=True):
            partners = self._tables[slot.table].partners
            slots += [slot.table, start, count]
            first, at = at, at + count
            if runs and runs[-1].partners == partners:
                first = runs.pop().where.start
            runs.append(_Run(slice(first, at), partners))
        return values, slots, runs

    def _share(self, spec: LookupSpec, t: int) -> float:
        return spec.tables[t].dim / self._tables[t].columns

    def _of_whole_rows(self, means: Tensor, runs: Sequence[_Run]) -> Tensor:
        """Return the means of whole rows, from the shares of each rank, added in order of ranks."""
        wire = self._wire
        shared = [
            [run.where for run in runs if rank in run.partners and rank != wire.rank]
            for rank in range(wire.world_size)
        ]
        sizes = [sum(where.stop - where.start for where in mine) for mine in shared]
        pieces = [means[where] for mine in shared for where in mine]
        sent = pieces[0] if len(pieces) == 1 else torch.cat([means[:0], *pieces])
        told = wire.swap(sent, sizes, sizes).split(sizes)
        parts = [
            torch.split(part, [where.stop - where.start for where in mine])
            for part, mine in zip(told, shared, strict=True)
        ]
        left = [iter(part) for part in parts]
        totals = []
        for run in runs:
            own = means[run.where]
            each = [own if rank == wire.rank else next(left[rank]) for rank in run.partners]
            total = each[0] + each[1] if len(each) > 1 else own  # some rows may lie on one rank
            for part in each[2:]:
                total += part
            totals.append(total)
        return totals[0] if len(totals) == 1 else torch.cat([means[:0], *totals])

    def _with_means(self, spec: LookupSpec) -> LookupSpec:
        """Return a spec whose tables have their means behind their state."""
        known = self._specs.get(id(spec))
        if known is None or known[0] is not spec:
            tables = [replace(table, states=table.states + 1) for table in spec.tables]
            known = spec, LookupSpec(tables, spec.slots, spec.num_keys, spec.width)
            self._specs = {id(spec): known}
        return known[1]
