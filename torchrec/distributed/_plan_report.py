"""What a planner has to say of a plan: values, and the same as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from torchrec.distributed._units import bytes_to_text

__all__ = [
    "Alternative",
    "LayerReport",
    "Optimality",
    "PlanReport",
    "RankMemory",
    "RankReport",
    "TableReport",
]


class Optimality(Enum):
    """What is known of other plans than the one that was made; values are the words for it."""

    PROVEN = "no plan is better"
    FITTING = "no plan is better of those that fit where tables are counted one by one"
    LOCAL = "no change of one table betters it"
    UNKNOWN = "whether another one is better was not found out"


@dataclass(frozen=True)
class RankMemory:
    """What a rank has in memory.

    Attributes:
        table_bytes: of tables, and states of optimizers.
        step_bytes: most that tensors of a step have beside, with those of layers if they were measured.
        message_bytes: of messages to others, in memory that the ranks of a host share; gradients of layers among them.
    """

    table_bytes: int
    step_bytes: int
    message_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        """All of them."""
        return self.table_bytes + self.step_bytes + self.message_bytes


@dataclass(frozen=True)
class LayerReport:
    """What layers take, which every rank has; it was measured.

    Attributes:
        ms: of a step, with gradients added up over the ranks.
        parameter_bytes: of parameters and buffers.
        training_bytes: of gradients and states of optimizers.
        product_bytes: that matrix products keep from step to step.
        sum_bytes: in which `DistributedDataParallel` adds up gradients.
        step_bytes: most that a step has more.
    """

    ms: float
    parameter_bytes: int
    training_bytes: int
    product_bytes: int
    sum_bytes: int
    step_bytes: int


@dataclass(frozen=True)
class RankReport:
    """What a rank has, and what a step takes it.

    Attributes:
        rank: which.
        compute_ms: looks up and updates.
        exchange_ms: sends and receives.
        memory: that it has.
        capacity: bytes that there are for these.
        reserved: bytes kept free for everything else.
        dense_bytes: those of them that layers have between steps: parameters and buffers, and if they were measured,
            gradients, and what optimizers and matrix products keep.
        tables: how many it has a part of.
    """

    rank: int
    compute_ms: float
    exchange_ms: float
    memory: RankMemory
    capacity: int
    reserved: int
    tables: int
    dense_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        """Of tables, states of optimizers, and what a step takes."""
        return self.memory.num_bytes

    @property
    def ms(self) -> float:
        """Both together."""
        return self.compute_ms + self.exchange_ms


@dataclass(frozen=True)
class Alternative:
    """Another way to place a table, while the others stay where they are.

    Attributes:
        sharding_type: value of a `ShardingType`.
        ms: what tables and messages would take of a step; None: it does not fit.
        missing: bytes that a rank lacks for it, if it does not fit.
        rank: which rank, then.
    """

    sharding_type: str
    ms: float | None
    missing: int = 0
    rank: int | None = None


@dataclass(frozen=True)
class TableReport:
    """How a table is placed.

    Attributes:
        module: path of its collection.
        table: its name.
        rows: of the whole table.
        columns: of the whole table.
        sharding_type: value of a `ShardingType`.
        compute_kernel: value of an `EmbeddingComputeKernel`.
        ranks: of its parts, one after the other.
        part_bytes: of each part.
        part_ms: what a step takes the rank of each part.
        alike_ms: what it takes all ranks together, each of them alike.
        wish: what was wished for it, if that decided something.
        others: other ways, the best ones first; None: they were not looked at, as there are too many tables.
    """

    module: str
    table: str
    rows: int
    columns: int
    sharding_type: str
    compute_kernel: str
    ranks: tuple[int, ...]
    part_bytes: tuple[int, ...]
    part_ms: tuple[float, ...]
    wish: str = ""
    others: tuple[Alternative, ...] | None = ()
    alike_ms: float = 0.0

    @property
    def num_bytes(self) -> int:
        """Of all parts."""
        return sum(self.part_bytes)

    @property
    def ms(self) -> float:
        """Of all parts, and all ranks."""
        return sum(self.part_ms) + self.alike_ms


@dataclass(frozen=True)
class PlanReport:
    """A plan, with what it was made from and what it is expected to take.

    Attributes:
        device: type of device of the ranks.
        batch_size: samples a rank.
        fixed_ms: what a step takes beside tables: messages, however small.
        optimality: what is known of other plans.
        is_measured: whether times are from rates measured on a machine, not from bandwidths.
        made_from: digest of ranks, batch size, wishes and tables.
        ranks: one for each.
        tables: in the order of the model.
        layers: what layers take; None: that was not measured.
    """

    device: str
    batch_size: int
    fixed_ms: float
    optimality: Optimality
    is_measured: bool
    made_from: str
    ranks: tuple[RankReport, ...]
    tables: tuple[TableReport, ...]
    layers: LayerReport | None = None

    @property
    def is_best(self) -> bool:
        """Whether no plan is better."""
        return self.optimality is Optimality.PROVEN

    @property
    def dense_ms(self) -> float | None:
        """What layers take of a step, with their gradients added up; None: that was not measured."""
        return None if self.layers is None else self.layers.ms

    @property
    def slowest(self) -> RankReport | None:
        """The rank that has most to do; None: there are no ranks."""
        return max(self.ranks, key=lambda rank: rank.ms, default=None)

    @property
    def step_ms(self) -> float:
        """What a step takes: tables, messages, and layers if they were measured."""
        return self.fixed_ms + self.tables_ms + (self.dense_ms or 0.0)

    @property
    def of_layers(self) -> str:
        """What layers take, in words; empty: there are none."""
        num_bytes = max((rank.dense_bytes for rank in self.ranks), default=0)
        layers = self.layers
        if layers is not None:
            kept = (
                (layers.parameter_bytes, "of parameters"),
                (layers.training_bytes, "of gradients and optimizers"),
                (layers.product_bytes, "that matrix products keep"),
            )
            more = (
                (layers.step_bytes, "of tensors"),
                (layers.sum_bytes, "in which DistributedDataParallel adds up gradients"),
            )
            return (
                f"Layers take {_ms(layers.ms)} of a step, and {bytes_to_text(num_bytes)} on each rank (measured): "
                f"{_listed(kept)}; in a step {_listed(more)} more."
            )
        if not num_bytes:
            return ""
        return (
            f"Layers have {bytes_to_text(num_bytes)} of parameters on each rank; what a step and their optimizers "
            "take was not measured."
        )

    @property
    def tables_ms(self) -> float:
        """What tables take: the rank that computes longest and the one that exchanges longest, as all wait."""
        return max((rank.compute_ms for rank in self.ranks), default=0.0) + max(
            (rank.exchange_ms for rank in self.ranks), default=0.0
        )

    @property
    def binds(self) -> list[str]:
        """What keeps the plan from being quicker, in sentences."""
        found = []
        slowest = self.slowest
        if slowest is not None and slowest.ms > 0:
            share, name = max(
                (self._of_rank(table, slowest.rank) / slowest.ms, table.table)
                for table in self.tables
            )
            least = min(rank.ms for rank in self.ranks)
            found.append(
                f"Time: rank {slowest.rank} takes longest, {share:.0%} of it for table {name!r}; "
                f"the quickest rank takes {least / slowest.ms:.0%} as long."
            )
        full = [rank for rank in self.ranks if rank.num_bytes > 0.95 * rank.capacity]
        if full:
            found.append(f"Memory: {_ranks([rank.rank for rank in full])} full to 95 % or more.")
        kept = [
            table.table for table in self.tables if any(o.ms is None for o in table.others or ())
        ]
        if kept:
            found.append(f"Memory: other ways do not fit for {_names(kept)}.")
        wished = [table.table for table in self.tables if table.wish]
        if wished:
            found.append(f"Wishes: for {_names(wished)}.")
        return found

    def _of_rank(self, table: TableReport, rank: int) -> float:
        parts = sum(ms for ms, r in zip(table.part_ms, table.ranks, strict=True) if r == rank)
        return parts + table.alike_ms / len(self.ranks)

    def text(self) -> str:
        """Return all of it, in lines of text."""
        rates = "measured rates" if self.is_measured else "rates from bandwidths, not measured"
        parts = "tables" if self.dense_ms is None else "tables and layers"
        lines = [
            f"{len(self.ranks)} ranks, {self.device}, {self.batch_size} samples each: a step takes "
            f"{_ms(self.step_ms)} for {parts}, {_ms(self.fixed_ms)} of it messages ({rates}); {self.optimality.value}.",
            *([self.of_layers] if self.of_layers else []),
            "",
            *_aligned(
                [
                    *("rank", "time", "compute", "exchange", "memory", "full"),
                    *("weights", "step", "messages", "layers", "tables"),
                ],
                [
                    [
                        str(rank.rank),
                        _ms(rank.ms),
                        _ms(rank.compute_ms),
                        _ms(rank.exchange_ms),
                        bytes_to_text(rank.num_bytes),
                        f"{rank.num_bytes / rank.capacity:.0%}" if rank.capacity else "-",
                        bytes_to_text(rank.memory.table_bytes),
                        bytes_to_text(rank.memory.step_bytes),
                        _or_dash(rank.memory.message_bytes),
                        _or_dash(rank.dense_bytes),
                        str(rank.tables),
                    ]
                    for rank in self.ranks
                ],
            ),
            "",
            *(self.binds or ["Nothing binds."]),
            "",
            *_aligned(
                ["table", "rows", "columns", "type", "ranks", "time", "memory", "next best"],
                [
                    [
                        table.table,
                        str(table.rows),
                        str(table.columns),
                        table.sharding_type,
                        _ranges(table.ranks),
                        _ms(table.ms),
                        bytes_to_text(table.num_bytes),
                        self.why(table),
                    ]
                    for table in self.tables
                ],
            ),
        ]
        return "\n".join(lines)

    def why(self, table: TableReport) -> str:
        """Return what else there was for a table, in words."""
        wish = f"{table.wish}; " if table.wish else ""
        if table.others is None:
            return f"{wish}not looked at"
        if not table.others:
            return f"{wish}no other way"
        return wish + ", ".join(self.other_text(other) for other in table.others[:2])

    def other_text(self, other: Alternative) -> str:
        """Return what another way would cost, in words."""
        if other.ms is None:
            return (
                f"{other.sharding_type} lacks {bytes_to_text(other.missing)} on rank {other.rank}"
            )
        more = other.ms - self.tables_ms - self.fixed_ms
        sign = "-" if more < 0 else "+"
        return f"{other.sharding_type} {'as long' if abs(more) < 5e-6 else sign + _ms(abs(more))}"


def _ms(ms: float) -> str:
    return f"{ms:.3g} ms" if ms < 1000 else f"{ms:.0f} ms"


def _or_dash(num_bytes: int) -> str:
    return bytes_to_text(num_bytes) if num_bytes else "-"


def _listed(parts: Sequence[tuple[int, str]]) -> str:
    return ", ".join(f"{bytes_to_text(num_bytes)} {what}" for num_bytes, what in parts if num_bytes)


def _names(tables: Sequence[str]) -> str:
    more = f" and {len(tables) - 5} more" if len(tables) > 5 else ""
    return ", ".join(map(repr, tables[:5])) + more


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]} is" if len(ranks) == 1 else f"ranks {_ranges(ranks)} are"


def _ranges(numbers: Sequence[int]) -> str:
    """Write 0, 1, 2, 5 as 0-2, 5."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _aligned(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (headers, *rows)
    ]
