"""What does not change from one look-up of a collection to the next, as one tensor that kernels read directly.

The int64 tensor holds, one behind the other::

    T, F                                               how many tables, how many slots
    dim, rows, num_embeddings, policy, rule, states    for each table
    table, key, pooling, column                        for each slot

A *slot* is one feature looked up in one table. ``csrc/embedding/bindings.cpp`` repeats this layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from torchrec.types import OptimizerType

# Separators of the names that go with a spec, for messages: those that ASCII has for the purpose.
FIELD, RECORD = "\x1f", "\x1e"


class PoolingCode(IntEnum):
    """How the rows of a bag become one row."""

    SUM = 0
    MEAN = 1
    NONE = 2


class PolicyCode(IntEnum):
    """What becomes of an id outside ``[0, num_embeddings)``."""

    ERROR = 0
    HASH = 1
    """Into the first ``num_embeddings`` rows."""
    OVERFLOW = 2
    """Into the rows behind ``num_embeddings``: ``hash_size`` of them, or one that all unknown ids share."""
    CLAMP = 3
    IGNORE = 4


# AdamW is Adam with its decay mode; the rest have a kernel each.
RULE_CODES = {
    None: -1,
    OptimizerType.SGD: 0,
    OptimizerType.ADAGRAD: 1,
    OptimizerType.ROWWISE_ADAGRAD: 2,
    OptimizerType.ADAM: 3,
    OptimizerType.ADAMW: 3,
    OptimizerType.PARTIAL_ROWWISE_ADAM: 4,
    OptimizerType.LAMB: 5,
    OptimizerType.PARTIAL_ROWWISE_LAMB: 6,
    OptimizerType.LARS_SGD: 7,
}
OPTIMIZER_OF_CODE = {code: kind for kind, code in reversed(RULE_CODES.items())}


@dataclass(frozen=True)
class TableSpec:
    """A table as its kernels see it.

    Attributes:
        name: for messages.
        dim: D.
        rows: E, the rows of the parameter.
        num_embeddings: ids in ``[0, num_embeddings)`` are rows themselves; at most ``rows``.
        policy: what becomes of other ids.
        optimizer: the rule that updates it in the backward pass, if any.
        states: number of states of that rule.
    """

    name: str
    dim: int
    rows: int
    num_embeddings: int
    policy: PolicyCode = PolicyCode.ERROR
    optimizer: OptimizerType | None = None
    states: int = 0


@dataclass(frozen=True)
class SlotSpec:
    """One feature looked up in one table.

    Attributes:
        feature: name of the feature, for messages.
        table: number of the table.
        key: position of the feature among the keys of the input.
        pooling: how a bag becomes one row.
        column: where its columns start in a pooled output.
    """

    feature: str
    table: int
    key: int
    pooling: PoolingCode = PoolingCode.SUM
    column: int = 0


class LookupSpec:
    """Tables and slots, and the tensor that says the same.

    Args:
        tables: the tables, in the order in which their weights are passed.
        slots: the slots, in the order of the output.
        num_keys: keys of the input.
        width: columns of a pooled output.

    Example:
        >>> spec = LookupSpec([TableSpec("user", 4, 10, 10)], [SlotSpec("u", 0, 0)], 1, 4)
        >>> spec.tensor.tolist()
        [1, 1, 4, 10, 10, 0, -1, 0, 0, 0, 0, 0]
    """

    def __init__(
        self, tables: list[TableSpec], slots: list[SlotSpec], num_keys: int, width: int
    ) -> None:
        self.tables = tables
        self.slots = slots
        self.num_keys = num_keys
        self.width = width
        self.dims = [tables[s.table].dim for s in slots]
        numbers = [len(tables), len(slots)]
        for t in tables:
            numbers += [
                t.dim,
                t.rows,
                t.num_embeddings,
                t.policy,
                RULE_CODES[t.optimizer],
                t.states,
            ]
        for s in slots:
            numbers += [s.table, s.key, s.pooling, s.column]
        self.tensor = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        self.names = RECORD.join(f"{tables[s.table].name}{FIELD}{s.feature}" for s in slots)

    def subset(self, chosen: list[int]) -> LookupSpec:
        """Return the spec of some of the tables and their slots, for the same input and output."""
        number = {table: i for i, table in enumerate(chosen)}
        slots = [
            SlotSpec(s.feature, number[s.table], s.key, s.pooling, s.column)
            for s in self.slots
            if s.table in number
        ]
        return LookupSpec([self.tables[t] for t in chosen], slots, self.num_keys, self.width)


def read_spec(tensor: Tensor) -> tuple[list[TableSpec], list[SlotSpec]]:
    """Return the tables and slots of a spec's tensor, without their names."""
    numbers = tensor.tolist()
    num_tables, num_slots = numbers[:2]
    fields = iter(numbers[2:])
    tables, slots = [], []
    for t in range(num_tables):
        dim, rows, num_embeddings, policy, rule, states = (next(fields) for _ in range(6))
        optimizer = OPTIMIZER_OF_CODE[rule]
        tables.append(
            TableSpec(str(t), dim, rows, num_embeddings, PolicyCode(policy), optimizer, states)
        )
    for _ in range(num_slots):
        table, key, pooling, column = (next(fields) for _ in range(4))
        slots.append(SlotSpec("", table, key, PoolingCode(pooling), column))
    return tables, slots
