"""Mean squares of the gradients of rows whose columns lie on several ranks: for row-wise Adagrad, by the kernels.

The first half of an update finds the mean squares of the columns that are here. The ranks that hold the same rows
have the same ids in the same bags, and so the same numbers in the same order: they tell each other these, and add
them up for the second half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrec.distributed.wire import Wire
from torchrec.ops.embedding import LookupGradient, SplitUpdate
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
    """Numbers, one behind the other, of tables whose rows the same ranks hold.

    Attributes:
        where: these among all.
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
        self._partners = [tables[update.table].partners for update in updates]
        self._shares = [update.weight.shape[1] / tables[update.table].columns for update in updates]
        self._wire = wire

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
        update = SplitUpdate(lookup, list(states), hyper, self._shares)
        update.finish(self._of_whole_rows(update.numbers(), self._runs(update.counts)))

    def _runs(self, counts: Sequence[int]) -> list[_Run]:
        runs, at = list[_Run](), 0
        for partners, count in zip(self._partners, counts, strict=True):
            first, at = at, at + count
            if runs and runs[-1].partners == partners:
                first = runs.pop().where.start
            runs.append(_Run(slice(first, at), partners))
        return runs

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
        received = wire.start_swap(sent, sizes, sizes).wait()
        parts = [
            torch.split(part, [where.stop - where.start for where in mine])
            for part, mine in zip(received, shared, strict=True)
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
