"""Updates of tables that every rank has a copy of, in the backward pass: by what all ranks have learnt.

Each rank looks its own batch up in its copy. At the end of a backward pass the ranks tell one another the gradients of
the rows that they have looked up, and all make the same update: of the same numbers, added up in the same order, so
that copies stay alike to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed.agreement import difference
from torchrec.distributed.checks import named_collection
from torchrec.distributed.terms import number_of
from torchrec.distributed.wire import Wire
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.tables import Tables
from torchrec.ops.embedding.layout import HYPER
from torchrec.optim.backward_pass import at_end_of_backward_pass
from torchrec.optim.joint_update import JointUpdate, PassGradients
from torchrec.optim.table_update import RowGradients, TableUpdate

__all__ = ["ReplicatedTables"]

# What all ranks should do, in the order of what they tell one another first; with tables, for each rank.
_SHOULD = (
    "be within `accumulate()`, or none, where every rank has a copy of a table. Received tables {} within it",
    "train the same tables. Received `requires_grad` of tables {}",
)


class _TakesPart(torch.autograd.Function):
    """A mark of no size; a backward pass that comes to it calls a function."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, call: Callable[[], None]) -> Tensor:
        ctx.call = call
        ctx.set_materialize_grads(False)
        return anchor.new_zeros(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor | None) -> tuple[None, None]:
        ctx.call()
        return None, None


class ReplicatedTables(Tables):
    """Tables of a collection that every rank has a copy of.

    Args:
        configs: the tables.
        modules: what holds the weight of each.
        prefix: of the names of the weights.
        wire: the ranks; None: there is one.
        path: of their module in its model.
    """

    def __init__(
        self,
        configs: Sequence[BaseEmbeddingConfig],
        modules: Sequence[nn.Module],
        prefix: str,
        wire: Wire | None,
        path: str,
    ) -> None:
        self._wire = wire
        self._named = named_collection(path, [config.name for config in configs])
        super().__init__(configs, modules, prefix)

    def _new_joint(self, numbers: list[int], updates: list[TableUpdate]) -> JointUpdate:
        # A table that waits for an optimizer's step has a gradient, which DistributedDataParallel adds up.
        if self._wire is None or self._waits_for_lr(numbers[0]):
            return super()._new_joint(numbers, updates)
        return ReplicatedUpdate(updates, self._wire, self._named)

    def marks(self) -> list[Tensor]:
        """Return what has a backward pass that comes to it take part in the update; nothing where there is none."""
        together = any(isinstance(joint, ReplicatedUpdate) for joint, _ in self._joints)
        anchor = torch.zeros(0, requires_grad=True)
        return [_TakesPart.apply(anchor, self.take_part)] if together else []  # type: ignore[no-untyped-call]

    def take_part(self) -> None:
        """Take part in the update of this backward pass, though this rank's loss may use none of the tables."""
        for joint, _ in self._joints:
            if isinstance(joint, ReplicatedUpdate):
                joint.pass_gradients()


class ReplicatedUpdate(JointUpdate):
    """Updates copies of tables together with the other ranks, which all have one of each.

    Args:
        updates: of this rank's copies.
        wire: the ranks.
        collection: what errors call the collection that has the tables.
    """

    def __init__(self, updates: list[TableUpdate], wire: Wire, collection: str) -> None:
        super().__init__(updates)
        self._wire = wire
        self._topic = f"the update of copies of tables of {collection}"

    @torch.no_grad()
    def finish(self, brought: PassGradients) -> None:
        """Apply what a backward pass has brought to all ranks, with what waits from earlier ones, or keep it."""
        # After all others: on a rank that only takes part, other updates that ranks make together came first.
        at_end_of_backward_pass(partial(self._finish_last, brought))

    @torch.no_grad()
    def _finish_last(self, brought: PassGradients) -> None:
        self._check_memory()
        self.collect(self._of_all_ranks(brought))
        self.apply_waiting([update for update in self.updates if not update.collecting])

    def _of_all_ranks(self, brought: PassGradients) -> PassGradients:
        """Return the mean gradients of all ranks; all of them call this."""
        gradients: dict[TableUpdate, list[RowGradients]] = {}
        for update, rows in self.row_gradients(brought):
            if update.weight.requires_grad:
                gradients.setdefault(update, []).append(rows)
        mine = [_one(gradients.get(update, [])) for update in self.updates]
        dtypes = [torch.float32, *(update.weight.dtype for update in self.updates)]
        dtype = reduce(torch.promote_types, dtypes)
        of_ranks = [
            _unpacked(
                message, len(mine), dtype, [update.weight.shape[1] for update in self.updates]
            )
            for message in self._gather(_packed(brought.num_samples, mine, dtype))
        ]
        found = PassGradients(
            brought.backward_pass, samples=sum(samples for samples, _ in of_ranks)
        )
        for update, each in zip(
            self.updates, zip(*(rows for _, rows in of_ranks), strict=True), strict=True
        ):
            whole = _one([part for part in each if part is not None])
            if whole is not None:
                mean = whole._replace(values=whole.values / len(of_ranks))
                found.rows.append((update, mean))
        return found

    def _gather(self, message: Tensor) -> list[Tensor]:
        """Return the messages of all ranks, in their order."""
        ranks = self._wire.world_size
        terms = (
            [update.table for update in self.updates if update.collecting],
            [update.table for update in self.updates if update.weight.requires_grad],
        )
        if self._stale_rates:
            self._write_hyper()
        settings = number_of(self.hyper.numpy().tobytes())
        head = [*(number_of(repr(term).encode()) for term in terms), settings, len(message)]
        of_ranks = self._wire.begin(self._topic, [head] * ranks, len(head)).numbers()
        *numbers_of_terms, of_settings, lengths = zip(*of_ranks, strict=True)
        for should, numbers, term in zip(_SHOULD, numbers_of_terms, terms, strict=True):
            if len(set(numbers)) > 1:
                received = self._wire.gather(term)
                raise ValueError(f"All ranks should {should.format(received)}, by rank.")
        if len(set(of_settings)) > 1:
            raise ValueError(difference(self._wire.gather(self._settings())))
        messages = self._wire.swap(message.repeat(ranks), [len(message)] * ranks, lengths)
        return list(messages.split(lengths))

    def _settings(self) -> dict[str, str]:
        return {
            f"`{name}` of the copies of table '{update.table}'": str(value)
            for update, row in zip(self.updates, self.hyper.tolist(), strict=True)
            for name, value in zip(HYPER, row, strict=True)
        }


def _one(parts: Sequence[RowGradients]) -> RowGradients | None:
    """Return gradients one behind the other; None if there are none."""
    if len(parts) < 2:
        return parts[0] if parts else None
    timed = any(part.times is not None for part in parts)
    # What came otherwise than by a look-up, a penalty of all weights say, counts as looked up by nobody.
    times = [torch.zeros_like(part.rows) if part.times is None else part.times for part in parts]
    return RowGradients(
        torch.cat([part.rows for part in parts]),
        torch.cat([part.values for part in parts]),
        torch.cat(times) if timed else None,
    )


def _packed(samples: int, tables: Sequence[RowGradients | None], dtype: torch.dtype) -> Tensor:
    """Return gradients as bytes: how many there are of each table, -1 for none, then rows, times and values."""
    there = [rows for rows in tables if rows is not None]
    header = [samples]
    for rows in tables:
        header += [-1, 0] if rows is None else [len(rows.rows), int(rows.times is not None)]
    pieces = [torch.tensor(header), *(rows.rows.long() for rows in there)]
    pieces += [rows.times.long() for rows in there if rows.times is not None]
    pieces += [rows.values.to(dtype).flatten() for rows in there]
    return torch.cat([piece.contiguous().view(torch.uint8) for piece in pieces])


def _unpacked(
    message: Tensor, tables: int, dtype: torch.dtype, dims: Sequence[int]
) -> tuple[int, list[RowGradients | None]]:
    """Return what `_packed` was given."""
    at = 0

    def read(count: int, kind: torch.dtype) -> Tensor:
        nonlocal at
        start, at = at, at + count * kind.itemsize
        return message[start:at].clone().view(kind)  # a copy begins where numbers may

    samples, *rest = read(1 + 2 * tables, torch.int64).tolist()
    counts, timed = rest[::2], rest[1::2]
    rows = [read(max(count, 0), torch.int64) for count in counts]
    times = [
        read(count, torch.int64) if known else None
        for count, known in zip(counts, timed, strict=True)
    ]
    values = [
        read(max(count, 0) * dim, dtype).view(-1, dim)
        for count, dim in zip(counts, dims, strict=True)
    ]
    found = zip(counts, rows, values, times, strict=True)
    return samples, [None if n < 0 else RowGradients(r, v, t) for n, r, v, t in found]
