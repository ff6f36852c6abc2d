"""Updates of tables whose columns lie on several ranks, by rules that look at a row as a whole.

Row-wise Adagrad, say, keeps one number a row: the mean square of the row's gradient, of which each rank knows the part
of its own columns. The ranks that hold the same rows tell one another these parts, for all tables at once, and go on
with the sum: so a row has one state, and trains as if it were in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchrec.distributed._private import parameters_by_name
from torchrec.distributed.agreement import difference
from torchrec.distributed.mean_squares import MeanSquares, SplitTable
from torchrec.distributed.terms import number_of
from torchrec.distributed.wire import Wire
from torchrec.ops.embedding import SplitUpdate
from torchrec.ops.embedding.hyper import SAMPLES
from torchrec.ops.embedding.updates import RULES, Hyper, RowSums
from torchrec.optim.joint_update import JointUpdate, PassGradients
from torchrec.optim.owners import UpdateTime, owner_of
from torchrec.optim.rows import apply_rule
from torchrec.optim.scaled_steps import scaled_steps
from torchrec.optim.table_update import FusedRule, TableUpdate
from torchrec.process_groups.lost_ranks import lost_ranks_named
from torchrec.types import OptimizerType

__all__ = ["RowSumExchange", "SplitColumnsStep", "SplitColumnsUpdate", "SplitTable"]


_UPDATE = "the update of tables whose columns are on several ranks"


class _MissingSumError(Exception):
    """A rule asks for a sum over rows whose other parts are not known yet."""

    def __init__(self, part: Tensor) -> None:
        self.part = part


class _KnownSums(RowSums):
    """Sums that the ranks have told one another, in the order in which a rule asks for them."""

    def __init__(self, known: Sequence[Tensor], columns: int) -> None:
        self._known, self._columns = list(known), columns

    def of_squares(self, x: Tensor) -> Tensor:
        if not self._known:
            raise _MissingSumError((x * x).sum(dim=1, keepdim=True))
        return self._known.pop(0)

    def mean_square(self, x: Tensor) -> Tensor:
        return self.of_squares(x) / self._columns


@dataclass(frozen=True)
class Attempt:
    """An update of a table by given sums; it writes nothing before it has all sums it asks for.

    Attributes:
        rows: that it updates, in order.
        update: makes it.
    """

    rows: Tensor
    update: Callable[[RowSums], None]

    @property
    def digest(self) -> int:
        """A number of the rows: whoever has the same ones has the same."""
        return number_of(self.rows.cpu().numpy().tobytes())


def _missing_part(attempt: Attempt, sums: RowSums) -> Tensor | None:
    """Try to update a table; return this rank's part of the first sum that is missing, None if it is done.

    A rule asks for its sums one after another: it starts anew with one more each time.
    """
    try:
        attempt.update(sums)
    except _MissingSumError as missing:
        return missing.part
    return None


def _check_same_rows(table: str, holders: Sequence[int], digests: Sequence[int]) -> None:
    """Refuse gradients of different rows, on ranks that hold columns of the same ones."""
    ranks_of: dict[int, list[int]] = {}
    for rank, digest in zip(holders, digests, strict=True):
        ranks_of.setdefault(digest, []).append(rank)
    if len(ranks_of) > 1:
        unlike = " unlike those on ".join(f"ranks {ranks}" for ranks in ranks_of.values())
        raise ValueError(
            f"Ranks that hold columns of table '{table}' should have gradients of the same rows: of look-ups they "
            "do, but what uses the weight itself has to reach the same rows on each of them. "
            f"Received rows on {unlike}."
        )


def _sums_in_backward(rule: FusedRule | None) -> int:
    return 0 if rule is None or rule.inherits_lr else RULES[rule.optimizer].row_sums


class RowSumExchange:
    """Has the updates of a step ask for sums over rows together.

    Args:
        tables: all whose columns are split, the same ones on all ranks.
        modules: of each, what has this rank's part as ``weight``; empty where it has none.
        wire: the ranks.
        one_way: whether a step looks all of these tables up by rows, or pools all of them.
    """

    def __init__(
        self,
        tables: Mapping[str, SplitTable],
        modules: Mapping[str, nn.Module],
        wire: Wire,
        one_way: bool,
    ) -> None:
        self.tables, self.wire, self._one_way = dict(tables), wire, one_way
        # Not asked through the modules: that takes ten times as long, in every step.
        self._parameters = {table: parameters_by_name(each) for table, each in modules.items()}
        self._numbered = list[Hyper](), number_of(b"[]")

    def sums_of(self, table: str) -> int:
        """Return how many sums over rows the update of a table in the backward pass asks for.

        A table may get a rule when it is sharded already.
        """
        return _sums_in_backward(self._rule_of(table))

    def sums_at_step(self, table: str) -> int:
        """Return how many sums over rows the update of a table asks for that waits for an optimizer's step."""
        rule = self._rule_of(table)
        return 0 if rule is None or not rule.inherits_lr else RULES[rule.optimizer].row_sums

    def _owner_of(self, table: str) -> TableUpdate | None:
        weight = self._parameters[table]["weight"]
        owner = None if weight is None else owner_of(weight)
        return owner if isinstance(owner, TableUpdate) else None

    def _rule_of(self, table: str) -> FusedRule | None:
        owner = self._owner_of(table)
        return None if owner is None else owner.rule

    def all_agree(self, is_alone: bool) -> bool:
        """Return whether `MeanSquares` makes the update of this backward pass: if it can on all ranks, which call this.

        Args:
            is_alone: whether there is one look-up to apply, and nothing else.

        Raises:
            ValueError: on all ranks, if their hyper-parameters differ, naming the first.
        """
        owners = self._updated_here()
        hypers = [owner.hyper for owner in owners.values()]
        by_kernel = is_alone and self._one_way and self._by_kernel(owners.values(), hypers)
        mine = [int(by_kernel), self._settings_number(hypers)]
        of_ranks = self.wire.begin(_UPDATE, [mine] * self.wire.world_size, len(mine)).numbers()
        if any(settings != mine[1] for _, settings in of_ranks):
            raise ValueError(difference(self.wire.gather(self._settings())))
        return all(by_kernel for by_kernel, _ in of_ranks)

    def _updated_here(self) -> dict[str, TableUpdate]:
        """Return who trains each table of this rank that the backward pass updates by sums over rows."""
        owners = {table: self._owner_of(table) for table in self.tables}
        return {
            table: owner
            for table, owner in owners.items()
            if owner and _sums_in_backward(owner.rule)
        }

    def _settings(self) -> dict[str, str]:
        """Return the hyper-parameters of all tables that the backward pass updates here."""
        return {
            f"`{field.name}` of table '{table}'": str(getattr(owner.hyper, field.name))
            for table, owner in self._updated_here().items()
            for field in fields(owner.hyper)
        }

    def _settings_number(self, hypers: list[Hyper]) -> int:
        """Return a number of the hyper-parameters: ranks that have other ones would train parts of a row apart."""
        if hypers != self._numbered[0]:
            self._numbered = hypers, number_of(repr(hypers).encode())
        return self._numbered[1]

    def _by_kernel(self, owners: Collection[TableUpdate], hypers: Sequence[Hyper]) -> bool:
        """Whether `MeanSquares` can make the update here.

        There may be no kernels on one rank, or another hyper-parameter, which takes the weights into account.
        """
        rules = {owner.rule.optimizer for owner in owners if owner.rule is not None}
        takes = SplitUpdate.takes([owner.weight for owner in owners])
        return (
            rules <= {OptimizerType.ROWWISE_ADAGRAD}
            and takes
            and all(hyper.lazy for hyper in hypers)
        )

    @property
    def rounds(self) -> int:
        """The most sums that the rule of one of the tables asks for, those included of which this rank has nothing."""
        return max(map(self.sums_of, self.tables), default=0)

    def run(self, attempts: Mapping[str, Attempt]) -> None:
        """Make the updates of this rank; all ranks call this, those without any too.

        Args:
            attempts: for each table that has something to update, its update.

        Raises:
            ValueError: on all ranks, if some that hold the same rows have gradients of different ones.
        """
        self._check_rows(attempts)
        known: dict[str, list[Tensor]] = {name: [] for name in attempts}
        for _ in range(self.rounds):
            parts: dict[str, Tensor] = {}
            for name, attempt in attempts.items():
                part = _missing_part(attempt, _KnownSums(known[name], self.tables[name].columns))
                if part is not None:
                    parts[name] = part
            for name, total in self._add_up(parts).items():
                known[name].append(total)
            attempts = {name: attempt for name, attempt in attempts.items() if name in parts}
        for name, attempt in attempts.items():
            attempt.update(_KnownSums(known[name], self.tables[name].columns))

    def _check_rows(self, attempts: Mapping[str, Attempt]) -> None:
        """Refuse an update whose rows differ between ranks that hold the same: sums would be of different ones."""
        head = list[int]()
        for table, split in self.tables.items():
            attempt = attempts.get(table)
            head += [min(split.partners, default=-1), 0 if attempt is None else attempt.digest]
        of_ranks = self.wire.begin(_UPDATE, [head] * self.wire.world_size, len(head)).numbers()
        for table, firsts, digests in zip(
            self.tables, *[list(zip(*of_ranks, strict=True))[k::2] for k in (0, 1)], strict=True
        ):
            for first in sorted(set(firsts) - {-1}):
                holders = [rank for rank, its_first in enumerate(firsts) if its_first == first]
                _check_same_rows(table, holders, [digests[rank] for rank in holders])

    def add_up_among_partners(self, table: str, part: Tensor, digest: int) -> Tensor:
        """Return the sum of what the ranks have that hold the same rows, added in order of ranks.

        Others take no part: they may have no optimizer that steps with the table.

        Args:
            table: its name.
            part: of this rank.
            digest: of the rows that the part is of.

        Raises:
            ValueError: on all of these ranks, if they step with different tables, or have gradients of different rows.
        """
        partners = self.tables[table].partners
        self.wire.meet(partners, f"the step of an optimizer with columns of table '{table}'")
        # Of one size, whatever it is about: gloo ends a process that is sent more than it waits for.
        head = torch.tensor([number_of(table.encode()), digest])
        heads = self._gather_partners(partners, head)
        if any(each[0] != head[0] for each in heads):
            raise ValueError(
                f"Optimizers of all ranks should step with their tables in the same order. Received table '{table}' "
                f"on rank {self.wire.rank}, and others on some of the ranks {list(partners)}."
            )
        _check_same_rows(table, partners, [int(each[1]) for each in heads])
        parts = self._gather_partners(partners, part.contiguous())
        return reduce(torch.add, parts[1:], parts[0].clone())

    def _gather_partners(self, partners: Sequence[int], mine: Tensor) -> list[Tensor]:
        """Return what each of some ranks, this one among them, sends the others, in their order."""
        with lost_ranks_named(self.wire.group) as group:
            others = [rank for rank in partners if rank != self.wire.rank]
            received = {rank: torch.empty_like(mine) for rank in others}
            works = [dist.isend(mine, group=group, group_dst=rank) for rank in others]
            works += [dist.irecv(received[rank], group=group, group_src=rank) for rank in others]
            for work in works:
                if work is not None:
                    work.wait()
        return [received.get(rank, mine) for rank in partners]

    def _add_up(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums of what this rank and its partners have, added in order of ranks."""
        names = [name for name in self.tables if name in parts]
        together = [
            [name for name in names if rank in self.tables[name].partners]
            for rank in range(self.wire.world_size)
        ]
        pieces = [parts[name].flatten() for shared in together for name in shared]
        sizes = [sum(parts[name].numel() for name in shared) for shared in together]
        sent = torch.cat(pieces) if pieces else torch.empty(0)
        received = self.wire.swap(sent, sizes, sizes).split(sizes)
        totals: dict[str, Tensor] = {}
        for shared, sums in zip(together, received, strict=True):
            for name, part in zip(
                shared, sums.split([parts[name].numel() for name in shared]), strict=True
            ):
                part = part.view_as(parts[name])
                totals[name] = part.clone() if name not in totals else totals[name] + part
        return totals


class SplitColumnsUpdate(JointUpdate):
    """Updates tables whose columns are split, at the end of each backward pass.

    Args:
        updates: of this rank's parts.
        exchange: with the ranks that have the other columns.
    """

    def __init__(self, updates: list[TableUpdate], exchange: RowSumExchange) -> None:
        super().__init__(updates)
        self._exchange = exchange
        self._means: MeanSquares | None = None
        self.collecting = False  # as within `accumulate()`, on all ranks alike
        self._waits = False

    def place(self) -> None:
        """Bring the states of the tables to where their weights are."""
        super().place()
        self._means = None

    @torch.no_grad()
    def finish(self, brought: PassGradients) -> None:
        """Apply what a backward pass has brought, with what waits from earlier ones, or keep it."""
        if self._exchange.all_agree(self._is_alone(brought)):
            self._apply_at_once(brought)
            return
        self.collect(brought)
        self._waits = True
        if not self.collecting:
            self.apply_waiting(self.updates)

    def _is_alone(self, brought: PassGradients) -> bool:
        """Whether there is one look-up for this rank to apply and nothing else.

        Others may say otherwise: of another table, which this rank has no columns of, more may have come.
        """
        if self.collecting or self._waits or brought.rows or len(brought.lookups) > 1:
            return False
        if not self.updates:
            return True  # ranks without any of the tables take part in whatever others do
        return len(brought.lookups) == 1 and not self._frozen_since(brought.lookups[0])

    def _apply_at_once(self, brought: PassGradients) -> None:
        if self._means is None:
            self._means = MeanSquares(self.updates, self._exchange.tables, self._exchange.wire)
        if self._stale_rates:
            self._write_hyper()
        lookup = brought.lookups[0] if self.updates else None
        if lookup is not None and self._penalises:
            self.hyper[:, SAMPLES] = lookup.samples
        self.updated = UpdateTime(scaled_steps.taken, brought.backward_pass)
        states = [state for update in self.updates for state in update.states.values()]
        self._means.update(lookup, states, self.hyper)

    @torch.no_grad()
    def apply_waiting(self, updates: list[TableUpdate]) -> None:
        """Update all tables with the gradients that wait for them; all ranks do this alike.

        Args:
            updates: without effect: ranks that have none of them take part as well.
        """
        if self._waits:
            self._waits = False
            # On every rank alike: a part that no id chose has gradients of no rows, a frozen table has none at all.
            chosen = [update for update in self.updates if update.waiting]
            self._exchange.run({update.table: _attempt_of(update) for update in chosen})


class SplitColumnsStep(JointUpdate):
    """Updates a table whose columns are split when an optimizer steps that its part is given to.

    Args:
        update: of this rank's part.
        exchange: with the ranks that have the other columns, whose optimizers step with their parts as well.
    """

    def __init__(self, update: TableUpdate, exchange: RowSumExchange) -> None:
        super().__init__([update])
        self._exchange = exchange

    @torch.no_grad()
    def apply_waiting(self, updates: list[TableUpdate]) -> None:
        """Update the table with the gradient that waits for it; all ranks that have some columns do this alike.

        Args:
            updates: without effect, if they are others.
        """
        (update,) = self.updates
        if update not in updates or not update.waiting:
            return
        exchange, attempt = self._exchange, _attempt_of(update)
        columns, digest = exchange.tables[update.table].columns, attempt.digest
        known: list[Tensor] = []
        part = _missing_part(attempt, _KnownSums(known, columns))
        while part is not None:
            known.append(exchange.add_up_among_partners(update.table, part, digest))
            part = _missing_part(attempt, _KnownSums(known, columns))


def _attempt_of(update: TableUpdate) -> Attempt:
    """Return the update of one table by what waits for it, given the sums that its rule asks for."""
    weight, waiting = update.weight.detach(), update.take_waiting()
    assert update.rule is not None
    rule, hyper = RULES[update.rule.optimizer], update.hyper
    update.step.add_(1)
    rows = [part.rows for part in waiting]
    values = [part.values.float() for part in waiting]
    gradient = torch.sparse_coo_tensor(
        torch.cat([weight.new_empty(0, dtype=torch.int64), *rows]).unsqueeze(0),
        torch.cat([weight.new_empty((0, weight.shape[1]), dtype=torch.float32), *values]),
        weight.shape,
        check_invariants=False,
    ).coalesce()
    step = int(update.step)

    def attempt(sums: RowSums) -> None:
        apply_rule(rule, weight, gradient, update.states, step, hyper, sums)

    return Attempt(gradient.indices()[0], attempt)
