"""What does not change from one look-up of a collection to the next, as one tensor that kernels read directly.

A *slot* is one feature looked up in one table. ``layout.py`` says what stands where in the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from torchrec.ops._private import outside_jit_trace
from torchrec.ops.embedding import layout
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
    ROWS = 5
    """Nothing is out of range: ids are rows that `choose_rows` chose, ``NO_ROW`` among them."""


_POLICIES, _POOLINGS = frozenset(PolicyCode), frozenset(PoolingCode)

# What stands for the row of an id that no row stands for.
NO_ROW = -1


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
    """A table, or a shard of its rows, as kernels see it.

    Which row an id chooses is decided for the whole table. A weight may hold a shard of it, the
    rows ``[first_row, first_row + shard_rows)``: rows of other shards add zeros to a bag and get no
    gradient, so the outputs of all shards sum to that of the table.

    Attributes:
        name: for messages.
        dim: D.
        rows: E, the rows of the whole table.
        num_embeddings: ids in ``[0, num_embeddings)`` are rows themselves; at most ``rows``.
        policy: what becomes of other ids.
        optimizer: the rule that updates it in the backward pass, if any.
        states: number of states of that rule.
        first_row: of the weight.
        shard_rows: rows of the weight. Default: all.
    """

    name: str
    dim: int
    rows: int
    num_embeddings: int
    policy: PolicyCode = PolicyCode.ERROR
    optimizer: OptimizerType | None = None
    states: int = 0
    first_row: int = 0
    shard_rows: int | None = None

    def __post_init__(self) -> None:
        """Refuse a shard that is not within the table."""
        if not (self.first_row >= 0 and self.first_row + self.num_shard_rows <= self.rows):
            raise ValueError(
                f"Rows of table '{self.name}' should be within [0, {self.rows}). Received "
                f"`first_row` {self.first_row} and `shard_rows` {self.shard_rows}."
            )

    @property
    def num_shard_rows(self) -> int:
        """Rows of the weight."""
        return self.rows if self.shard_rows is None else self.shard_rows


class SlotSpec(NamedTuple):
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
        device: where kernels read the tensor. Default: the CPU, as the kernels of the CPU and plain
            PyTorch on any device do.

    Example:
        >>> spec = LookupSpec([TableSpec("user", 4, 10, 10)], [SlotSpec("u", 0, 0)], 1, 4)
        >>> spec.tensor.tolist()
        [3, 1, 1, 4, 10, 10, 0, -1, 0, 0, 10, 0, 0, 0, 0]
    """

    def __init__(
        self,
        tables: list[TableSpec],
        slots: list[SlotSpec],
        num_keys: int,
        width: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tables = tables
        self.slots = slots
        self.num_keys = num_keys
        self.width = width
        self.dims = [tables[s.table].dim for s in slots]
        records: list[tuple[int, ...]] = [(layout.VERSION, len(tables), len(slots))]
        records += [_table_record(t) for t in tables]
        records += [(s.table, s.key, s.pooling, s.column) for s in slots]
        numbers = [number for record in records for number in record]
        with outside_jit_trace():  # made once and kept: a second recording would find it
            self.tensor = torch.tensor(numbers, dtype=torch.int64, device=device)
        self.names = RECORD.join(f"{tables[s.table].name}{FIELD}{s.feature}" for s in slots)

    def subset(self, chosen: list[int]) -> LookupSpec:
        """Return the spec of some of the tables and their slots, for the same input and output."""
        number = {table: i for i, table in enumerate(chosen)}
        slots = [s._replace(table=number[s.table]) for s in self.slots if s.table in number]
        tables = [self.tables[t] for t in chosen]
        return LookupSpec(tables, slots, self.num_keys, self.width, self.tensor.device)


def _table_record(t: TableSpec) -> tuple[int, ...]:
    rule = RULE_CODES[t.optimizer]
    shard = t.first_row, t.num_shard_rows
    return (t.dim, t.rows, t.num_embeddings, t.policy, rule, t.states, *shard)


def read_spec(tensor: Tensor) -> tuple[list[TableSpec], list[SlotSpec]]:
    """Return the tables and slots of a spec's tensor, without their names.

    Raises:
        ValueError: if another version of the package has made the tensor.
    """
    numbers = tensor.flatten().tolist()
    if not numbers or numbers[0] != layout.VERSION:
        raise ValueError(
            f"`spec` should have version {layout.VERSION} of the layout. Received "
            f"{numbers[0] if numbers else 'no numbers'}."
        )
    records = len(layout.HEADER), len(layout.TABLE), len(layout.SLOT)
    num_tables, num_slots = (*numbers, -1, -1)[1:3]
    size = records[0] + num_tables * records[1] + num_slots * records[2]
    if min(num_tables, num_slots) < 0 or len(numbers) != size:
        raise ValueError(
            f"`spec` should hold the numbers of its tables and slots. Received {len(numbers)} numbers."
        )
    fields = iter(numbers[len(layout.HEADER) :])
    tables, slots = [], []
    for t in range(num_tables):
        of = {name: next(fields) for name in layout.TABLE}
        if of["policy"] not in _POLICIES or of["rule"] not in OPTIMIZER_OF_CODE:
            raise ValueError(
                f"Table number {t} of the spec should have a policy and an update rule that there is. "
                f"Received {of['policy']} and {of['rule']}."
            )
        policy, optimizer = PolicyCode(of.pop("policy")), OPTIMIZER_OF_CODE[of.pop("rule")]
        tables.append(TableSpec(str(t), policy=policy, optimizer=optimizer, **of))
    for s in range(num_slots):
        of = {name: next(fields) for name in layout.SLOT}
        if of["pooling"] not in _POOLINGS or not 0 <= of["table"] < num_tables:
            raise ValueError(
                f"Slot number {s} of the spec should have a pooling that there is and a table below "
                f"{num_tables}. Received {of['pooling']} and {of['table']}."
            )
        slots.append(SlotSpec("", pooling=PoolingCode(of.pop("pooling")), **of))
    return tables, slots
