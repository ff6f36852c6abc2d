"""The optimizer that updates the tables of a collection in the backward pass of their look-up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from torchrec.ops.embedding import (
    Bags,
    Ids,
    LookupSpec,
    SlotSpec,
    TableSpec,
    Updater,
    bag_row_grads,
    new_hyper,
    sequence_row_grads,
    write_hyper,
)
from torchrec.ops.embedding.hyper import LR, STEP
from torchrec.ops.embedding.updates import RULES, Hyper
from torchrec.optim.fused import FusedOptimizer
from torchrec.types import OptimizerType


class FusedTable:
    """A table that is updated in the backward pass.

    Args:
        number: of the table in its collection.
        name: of its parameter, ``embedding_bags.user.weight`` say.
        optimizer: the update rule.
        hyper: its hyper-parameters.
        inherits_lr: whether its learning rate is that of the optimizer given the parameter instead.
    """

    def __init__(
        self,
        number: int,
        name: str,
        optimizer: OptimizerType,
        hyper: Hyper,
        inherits_lr: bool = False,
    ) -> None:
        self.number = number
        self.name = name
        self.optimizer = optimizer
        self.hyper = hyper
        self.inherits_lr = inherits_lr
        self.state_names = RULES[optimizer].state_names(hyper)

    def new_states(self, weight: Tensor) -> list[Tensor]:
        """Return its states before the first update."""
        rule = RULES[self.optimizer]
        return [rule.new_state(name, weight, self.hyper) for name in self.state_names]


class TablesUpdater(Updater):
    """The fused tables of a collection that are updated together, and what they keep.

    Gradients are collected instead of applied while ``collecting``; the next update applies them
    with its own, as one.

    Args:
        tables: the tables: those with a learning rate of their own, or one without.
    """

    def __init__(self, tables: list[FusedTable]) -> None:
        self.tables = tables
        self.inherits_lr = tables[0].inherits_lr
        self.collecting = False
        self.pending: list[list[Tensor]] = []
        self.hyper = new_hyper(len(tables))
        self.states: list[Tensor] = []
        for row, table in zip(self.hyper, tables, strict=True):
            write_hyper(row, table.hyper)

    def states_of(self, table: FusedTable) -> dict[str, Tensor]:
        """Return the states of a table by name, and its step count: what kernels write to."""
        row = self.tables.index(table)
        first = sum(len(t.state_names) for t in self.tables[:row])
        states = dict(zip(table.state_names, self.states[first:], strict=False))
        return {**states, "step": self.hyper[row, STEP]}

    def place(self, weights: list[Tensor]) -> None:
        """Make the states where they are not there yet, or bring them to where the weights are.

        Args:
            weights: of all tables of the collection.
        """
        owners = [table for table in self.tables for _ in table.state_names]
        placed = any(not state.is_meta for state in self.states)
        for i, table in enumerate(owners if placed else []):
            weight = weights[table.number]
            dtype = torch.promote_types(weight.dtype, torch.float32)
            self.states[i] = self.states[i].to(device=weight.device, dtype=dtype)
        if not placed:
            self.states = [
                state
                for table in self.tables
                for state in table.new_states(weights[table.number].detach())
            ]

    def update_bags(
        self, grad: Tensor, weights: list[Tensor], spec: LookupSpec, bags: Bags
    ) -> None:
        """Apply or collect the gradient of a pooled look-up."""
        if not self.collecting and not self.pending:
            return super().update_bags(grad, weights, spec, bags)
        return self._collect(bag_row_grads(grad, weights, spec, bags), weights, spec)

    def update_sequences(
        self, grads: list[Tensor | None], weights: list[Tensor], spec: LookupSpec, ids: Ids
    ) -> None:
        """Apply or collect the gradients of a look-up of sequences."""
        if not self.collecting and not self.pending:
            return super().update_sequences(grads, weights, spec, ids)
        return self._collect(sequence_row_grads(grads, weights, spec, ids), weights, spec)

    def _collect(self, pairs: list[Tensor], weights: list[Tensor], spec: LookupSpec) -> None:
        self.pending.append(pairs)
        if self.collecting:
            return
        pending, self.pending = self.pending, []
        rows = [torch.cat([p[2 * t] for p in pending]) for t in range(len(weights))]
        grads = [torch.cat([p[2 * t + 1] for p in pending]) for t in range(len(weights))]
        self.apply(rows, grads, weights, spec.tables)

    def apply(
        self,
        rows: list[Tensor],
        grads: list[Tensor],
        weights: list[Tensor],
        specs: list[TableSpec],
    ) -> None:
        """Update rows with gradients; those of a row that comes several times are summed.

        Args:
            rows: of each table of this updater, int64 ``(n,)``.
            grads: ``(n, D)``.
            weights: of each table.
            specs: of each table; those without an optimizer are left alone.
        """
        counts = [len(r) for r in rows]
        starts = [sum(counts[:t]) for t in range(len(counts))]
        # Rows have been chosen already: every one is known.
        tables = [
            TableSpec(t.name, t.dim, t.rows, t.rows, optimizer=t.optimizer, states=t.states)
            for t in specs
        ]
        spec = LookupSpec(tables, [SlotSpec("", t, 0) for t in range(len(tables))], 1, 0)
        with torch.no_grad():
            super().update_sequences(
                list(grads), weights, spec, Ids(torch.cat(rows), starts, counts)
            )

    def apply_sparse(self, grad: Tensor, lr: float, weight: Tensor, spec: TableSpec) -> None:
        """Update the one table of this updater with a gradient from autograd.

        Args:
            grad: sparse COO or dense, ``(E, D)``.
            lr: learning rate of the optimizer that steps.
            weight: of the table.
            spec: the table.
        """
        self.hyper[:, LR] = lr
        grad = (grad if grad.is_sparse else grad.to_sparse(1)).coalesce()
        self.apply([grad.indices()[0]], [grad.values()], [weight], [spec])


class _WrittenGroup(dict[str, Any]):
    """A parameter group whose hyper-parameters are written through to where kernels read them."""

    def __init__(self, values: Mapping[str, Any], updater: TablesUpdater, row: int) -> None:
        super().__init__(values)
        self._updater, self._row = updater, row

    def __setitem__(self, key: str, value: Any) -> None:
        table = self._updater.tables[self._row]
        if key in RULES[table.optimizer].options:
            table.hyper = RULES[table.optimizer].hyper({**self, key: value})
            write_hyper(self._updater.hyper[self._row], table.hyper)
        super().__setitem__(key, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any) -> _WrittenGroup:  # type: ignore[misc, override]
        self.update(other)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self), self._updater, self._row)


class EmbeddingFusedOptimizer(FusedOptimizer):
    """Shows the updates that happen in the backward pass of a collection as an optimizer.

    Its parameter groups, one a table, take a new learning rate (by hand or by a scheduler) that
    counts from the next backward pass on; its ``state_dict`` saves and restores the state of the
    tables under the names of their parameters. ``step`` and ``zero_grad`` have nothing to do.

    It is made by a collection, see ``EmbeddingBagCollection.fused_optimizer``.

    Args:
        params: name -> weight of every fused table.
        updaters: the fused tables.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, OptimizerType
        >>> table = EmbeddingBagConfig(
        ...     10, 4, "t", feature_names=["f"], optimizer=OptimizerType.ADAGRAD, lr=0.1
        ... )
        >>> optimizer = EmbeddingBagCollection(tables=[table]).fused_optimizer
        >>> list(optimizer.params), optimizer.param_groups[0]["lr"]
        (['embedding_bags.t.weight'], 0.1)
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)
    """

    def __init__(self, params: Mapping[str, Tensor], updaters: list[TablesUpdater]) -> None:
        self._updaters = updaters
        state: dict[Tensor, dict[str, Tensor]] = {}
        groups: list[_WrittenGroup] = []
        for updater in updaters:
            for row, table in enumerate(updater.tables):
                param = params[table.name]
                state[param] = updater.states_of(table)
                if not updater.inherits_lr:
                    options = RULES[table.optimizer].options
                    values = {name: getattr(table.hyper, name) for name in options}
                    groups.append(_WrittenGroup({"params": [param], **values}, updater, row))
        super().__init__(params, state, groups)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Collect the gradients of the backward passes inside; the next one outside applies them all.

        Example:
            >>> import torch
            >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
            >>> table = EmbeddingBagConfig(
            ...     2, 1, "t", feature_names=["f"], optimizer="sgd", lr=1.0, init_fn=torch.nn.init.zeros_
            ... )
            >>> ebc = EmbeddingBagCollection(tables=[table])
            >>> batch = KeyedJaggedTensor.from_lists({"f": [[0]]})
            >>> with ebc.fused_optimizer.accumulate():
            ...     ebc(batch).values().sum().backward()
            >>> ebc.embedding_bags["t"].weight[0].item()
            0.0
            >>> ebc(batch).values().sum().backward()
            >>> ebc.embedding_bags["t"].weight[0].item()
            -2.0
        """
        before = [updater.collecting for updater in self._updaters]
        for updater in self._updaters:
            updater.collecting = True
        try:
            yield
        finally:
            for updater, value in zip(self._updaters, before, strict=True):
                updater.collecting = value

    def __call__(self) -> EmbeddingFusedOptimizer:
        """Return this optimizer: ``fused_optimizer`` of a collection is also written as a method."""
        return self

    def set_optimizer_step(self, step: int) -> None:
        """Set the step counts, which Adam's bias correction depends on.

        Args:
            step: how many updates to assume to have been done.
        """
        for updater in self._updaters:
            updater.hyper[:, STEP] = step

    def step(self, closure: Any = None) -> Any:
        """Call ``closure``, if there is one: the update is part of the backward pass.

        Args:
            closure: computes the loss and runs the backward pass.
        """
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Do nothing: fused tables have no gradient.

        Args:
            set_to_none: without effect.
        """


_hook_installed = False


def install_step_hook() -> None:
    """Have every step of every optimizer update the tables that take their learning rate from it."""
    global _hook_installed
    if not _hook_installed:
        register_optimizer_step_pre_hook(_update_tables)
        _hook_installed = True


def _update_tables(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            step = getattr(param, "_step_with_lr", None)
            if step is not None:
                step(float(group["lr"]))
