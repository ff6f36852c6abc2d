"""Updates of several tables by one native call, when the backward pass has brought all their gradients.

A look-up does not update its tables itself: the same table may be looked up again in the same pass, or used directly.
What a pass brings is gathered, and applied at its end: as one update, with the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import attrgetter
from weakref import ref

import torch
from torch import Tensor

from torchrec.ops.embedding import (
    Ids,
    LookupGradient,
    LookupSpec,
    SequenceGradient,
    SlotSpec,
    TableSpec,
    Updater,
    choose_rows,
    new_hyper,
    write_hyper,
)
from torchrec.ops.embedding.hyper import LR, SAMPLES, STEP
from torchrec.optim.backward_pass import at_end_of_backward_pass, backward_pass_number
from torchrec.optim.owners import UpdateTime
from torchrec.optim.scaled_steps import scaled_steps
from torchrec.optim.table_update import RowGradients, TableUpdate


def _times(gradient: LookupGradient) -> list[Tensor]:
    """Return, for each table, how often each row that got a gradient was looked up, in order of the rows."""
    spec, ids = gradient.spec, gradient.slot_ids()
    rows = choose_rows(spec, ids)[0].split(list(ids.counts))
    chosen: list[list[Tensor]] = [[ids.values.new_empty(0, dtype=torch.int64)] for _ in spec.tables]
    for slot, mine in zip(spec.slots, rows, strict=True):
        chosen[slot.table].append(mine[mine >= 0])
    return [torch.cat(mine).unique(return_counts=True)[1] for mine in chosen]


_takes_gradient = attrgetter("requires_grad")
_has_waiting = attrgetter("waiting")
_is_collecting = attrgetter("collecting")


@dataclass
class PassGradients:
    """What one backward pass has brought to tables that are updated together.

    The pass owns it: if the pass fails, its gradients are gone with it.
    """

    backward_pass: int
    lookups: list[LookupGradient] = field(default_factory=list)
    rows: list[tuple[TableUpdate, RowGradients]] = field(default_factory=list)
    samples: int = 0  # that `rows` are of

    @property
    def num_samples(self) -> int:
        """How many samples looked something up."""
        return max([self.samples, *(lookup.samples for lookup in self.lookups)])


class JointUpdate:
    """Tables that are updated together: by one call of the kernel, where nothing else is to be added.

    Args:
        updates: of each table. It takes part in this one only, from now on.

    Attributes:
        hyper: float64, a row a table, for the kernels: a cache of what the updates say. Only the
            step counts live in it, as the kernels advance them.
        updated: when the last update was, with the pass whose gradients were the last in it.
    """

    def __init__(self, updates: list[TableUpdate]) -> None:
        self.updates = updates
        self.hyper = new_hyper(len(updates))
        self._states: list[Tensor] = []  # of all tables, one behind the other
        self._weights: list[Tensor] = []
        self.updated: UpdateTime | None = None
        self._arrived = -1  # number of the backward pass that gradients came from last
        self._stale = self._stale_rates = True
        self._penalises = False  # whether a table has an L2 penalty of the rows looked up
        self._passes: dict[int, ref[PassGradients]] = {}
        self._rows_spec: LookupSpec | None = None
        for row, update in zip(self.hyper, updates, strict=True):
            row[STEP] = update.step
            update.step, update.joint = row[STEP], self

    def place(self) -> None:
        """Bring the states of the tables to where their weights are."""
        for update in self.updates:
            update.place()
        self._weights = [update.weight for update in self.updates]
        self._states = [state for update in self.updates for state in update.states.values()]
        self._rows_spec = None

    def hyper_changed(self, only_rate: bool) -> None:
        """Take the learning rates, or all hyper-parameters, from the updates before the next one."""
        self._stale_rates = True
        self._stale |= not only_rate

    def rows_arrived(self, update: TableUpdate, rows: RowGradients, samples: int = 0) -> None:
        """Apply gradients of rows of one table at the end of this backward pass.

        Args:
            update: of the table.
            rows: the gradients.
            samples: that looked these rows up; 0: nobody did.
        """
        brought = self.pass_gradients()
        brought.rows.append((update, rows))
        brought.samples = max(brought.samples, samples)

    def pass_gradients(self) -> PassGradients:
        """Return what the backward pass under way has brought so far; what is added is applied at its end."""
        number = backward_pass_number()
        known = self._passes.get(number)
        brought = None if known is None else known()
        if brought is None:
            # Passes nest (reentrant checkpoints); those that are over or have failed are forgotten.
            if len(self._passes) > 8:
                self._passes = {n: r for n, r in self._passes.items() if r() is not None}
            brought = PassGradients(number)
            self._passes[number] = ref(brought)
            at_end_of_backward_pass(partial(self.finish, brought))
        return brought

    @torch.no_grad()
    def finish(self, brought: PassGradients) -> None:
        """Apply what a backward pass has brought, with what waits from earlier ones, or keep it.

        Args:
            brought: the gradients.
        """
        self._check_memory()
        lookups = brought.lookups
        alone = len(lookups) == 1 and not brought.rows and not self._frozen_since(lookups[0])
        if alone and not (
            any(map(_has_waiting, self.updates)) or any(map(_is_collecting, self.updates))
        ):
            if self._stale_rates:
                self._write_hyper()
            if self._penalises:
                self.hyper[:, SAMPLES] = lookups[0].samples
            self.updated = UpdateTime(scaled_steps.taken, brought.backward_pass)
            lookups[0].update(self._states, self.hyper)
            return
        self.collect(brought)
        self.apply_waiting([update for update in self.updates if not update.collecting])

    def collect(self, brought: PassGradients) -> None:
        """Have what a backward pass has brought wait for the update of its table.

        Args:
            brought: the gradients.
        """
        self._arrived = brought.backward_pass
        met: set[TableUpdate] = set()
        for update, rows in self.row_gradients(brought):
            if update.weight.requires_grad:
                update.waiting.append(rows)
                met.add(update)
        for update in met:
            update.samples_waiting += brought.num_samples

    def row_gradients(self, brought: PassGradients) -> list[tuple[TableUpdate, RowGradients]]:
        """Return the gradients of rows that a backward pass has brought, by table.

        Args:
            brought: the gradients.
        """
        # All of it at once: where one look-up fails, no other may wait for the next pass.
        looked_up = [
            zip(self.updates, _rows_of(lookup, self.updates), strict=True)
            for lookup in brought.lookups
        ]
        pairs = [*chain.from_iterable(looked_up), *brought.rows]
        return [(update, rows) for update, rows in pairs if rows is not None]

    def _check_memory(self) -> None:
        """Refuse tables whose memory was taken before their update; it is that of all, or of none."""
        if self._weights[0].numel() and not self._weights[0].untyped_storage().nbytes():
            raise RuntimeError(
                f"Table '{self.updates[0].table}' should have its memory until the end of the backward "
                "pass, which updates it. Received one that has none by then, as `fully_shard` leaves it: "
                "leave the table out (`ignored_params`), or leave its `optimizer` out."
            )

    def _frozen_since(self, lookup: LookupGradient) -> bool:
        """Whether a table takes no gradient any more that did take one when it was looked up."""
        if all(map(_takes_gradient, self._weights)):
            return False
        return any(
            table.optimizer is not None and not weight.requires_grad
            for table, weight in zip(lookup.spec.tables, self._weights, strict=True)
        )

    def apply_waiting(self, updates: list[TableUpdate]) -> None:
        """Update tables with the gradients that wait for them; those of one row are summed.

        Args:
            updates: of the tables; one that no gradient waits for stays as it is.
        """
        chosen = {id(update) for update in updates if update.waiting}
        if not chosen:
            return
        # Taken first: an update that fails is not made later.
        taken = [update.take_waiting() if id(update) in chosen else [] for update in self.updates]
        rows: list[Tensor] = []
        grads: list[Tensor | None] = []
        for update, waiting in zip(self.updates, taken, strict=True):
            nothing = update.weight.new_empty(0, dtype=torch.int64)
            rows.append(torch.cat([w.rows for w in waiting]) if waiting else nothing)
            grads.append(torch.cat([w.values for w in waiting]) if waiting else None)
        grads = _of_one_dtype(grads)
        counts = [len(r) for r in rows]
        starts = [sum(counts[:t]) for t in range(len(counts))]
        weights = [update.weight for update in self.updates]
        if self._stale_rates:
            self._write_hyper()
        if self._penalises:
            self.hyper[:, SAMPLES] = 0  # the penalty is in the gradients already
        self.updated = UpdateTime(scaled_steps.taken, self._arrived)
        ids = Ids(torch.cat(rows), starts, counts)
        with torch.no_grad():
            SequenceGradient(grads, weights, self._spec_of_rows(), ids).update(
                self._states, self.hyper
            )

    def _spec_of_rows(self) -> LookupSpec:
        """Return what describes gradients of rows: every id is the row itself."""
        if self._rows_spec is None:
            tables = [
                TableSpec(
                    update.table,
                    update.weight.shape[1],
                    update.weight.shape[0],
                    update.weight.shape[0],
                    optimizer=update.rule.optimizer if update.rule else None,
                    states=len(update.states),
                )
                for update in self.updates
            ]
            slots = [SlotSpec("", t, 0) for t in range(len(tables))]
            self._rows_spec = LookupSpec(tables, slots, 1, 0)
        return self._rows_spec

    def _write_hyper(self) -> None:
        """Bring the cache of hyper-parameters up to date: mostly, one column of it."""
        if self._stale:
            hypers = [update.hyper for update in self.updates]
            for row, hyper in zip(self.hyper, hypers, strict=True):
                write_hyper(row, hyper)
            self._penalises = any(hyper.batch_l2 for hyper in hypers)
        else:
            rates = [update.lr for update in self.updates]
            self.hyper[:, LR] = torch.tensor(rates, dtype=torch.float64, device=self.hyper.device)
        self._stale = self._stale and any(update.options_may_change for update in self.updates)
        self._stale_rates = self._stale or any(update.lr_may_change for update in self.updates)


def _of_one_dtype(grads: list[Tensor | None]) -> list[Tensor | None]:
    """Return gradients as one call of the kernel takes them, whose rows are of the types of their tables."""
    if len({grad.dtype for grad in grads if grad is not None}) < 2:
        return grads
    return [None if grad is None else grad.float() for grad in grads]


def _rows_of(gradient: LookupGradient, updates: list[TableUpdate]) -> list[RowGradients | None]:
    """Return the gradients of the rows of each table, with how often each was looked up where it counts."""
    found = [None if rows is None else RowGradients(*rows) for rows in gradient.rows()]
    if not any(update.penalises_batch for update in updates):
        return found
    return [
        None if rows is None else rows._replace(times=times)
        for rows, times in zip(found, _times(gradient), strict=True)
    ]


class LookupUpdater(Updater):
    """Hands the gradients of a look-up to those who update its tables.

    That is one joint update, if the tables are all of it. Of tables that are shared with another
    collection each gets the gradients of its rows.

    Args:
        updates: of the tables.
    """

    def __init__(self, updates: list[TableUpdate]) -> None:
        self.updates = updates

    def receive(self, gradient: LookupGradient) -> None:
        """Have the gradient of a look-up applied at the end of this backward pass."""
        # The list of a joint update is made for it alone: to be the same list is to be bound to it still,
        # with all its tables, and none since moved to another one. Equal lists would not say so.
        joint = self.updates[0].joint
        if isinstance(joint, JointUpdate) and joint.updates is self.updates:
            joint.pass_gradients().lookups.append(gradient)
            return
        for update, rows in zip(self.updates, _rows_of(gradient, self.updates), strict=True):
            if rows is not None and isinstance(update.joint, JointUpdate):
                update.joint.rows_arrived(update, rows, gradient.samples)
