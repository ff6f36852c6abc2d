"""How fast ranks exchange and compute: what topologies are given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from torchrec.distributed.planner.constants import CROSS_NODE_BANDWIDTH, INTRA_NODE_BANDWIDTH

__all__ = [
    "BasicCommsBandwidths",
    "CollectionStep",
    "CollectiveType",
    "GeneralizedCommsBandwidth",
    "PartLookup",
    "Rates",
    "StateSize",
]


@dataclass(frozen=True)
class StateSize:
    """How much an optimizer keeps of a table.

    Attributes:
        a_weight: numbers for each weight: 2 for Adam.
        a_row: numbers for each row: 1 for row-wise Adagrad.
    """

    a_weight: int
    a_row: int


@dataclass(frozen=True)
class PartLookup:
    """What is looked up in a part of a table in a step.

    Attributes:
        ids: how many.
        vectors: how many come of them: as many, or one a bag.
        columns: of a vector.
        table_bytes: of the part.
        kernel: value of an `EmbeddingComputeKernel`. Default ``"fused"``.
        touched: numbers of rows and vectors that a rank comes by in a step, of all tables that it has: what caches hold
            of a table depends on it. Default: as where rates were measured.
    """

    ids: float
    vectors: float
    columns: int
    table_bytes: float
    kernel: str = "fused"
    touched: float | None = None


@dataclass(frozen=True)
class CollectionStep:
    """What a step of a collection has whatever its tables hold: messages, parts, what it gives.

    Attributes:
        world_size: how many ranks take part.
        tables: how many it has. Default 1.
        parts: how many these are divided into, all together. Default 1.
        by_rows: whether rows of some table lie apart.
        adds_squares: whether ranks add up sums of squares in some update.
        is_pooled: whether it gives one tensor; else each table gives one of its own.
        vector_bytes: of all vectors that it gives a rank.
    """

    world_size: int
    tables: int = 1
    parts: int = 1
    by_rows: bool = False
    adds_squares: bool = False
    is_pooled: bool = True
    vector_bytes: float = 0.0


class CollectiveType(Enum):
    """How ranks exchange."""

    ALL_TO_ALL = "all_to_all"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_GATHER = "all_gather"
    ALL_REDUCE = "all_reduce"


class GeneralizedCommsBandwidth(ABC):
    """How fast ranks exchange, in bytes a millisecond."""

    def __str__(self) -> str:
        # What plans are made from has a digest: equal ones should read the same.
        return f"{type(self).__name__}: inter_host_bw={self.inter_host_bw}, intra_host_bw={self.intra_host_bw}"

    @abstractmethod
    def get_bw(
        self, local_world_size: int, world_size: int, collective_type: CollectiveType
    ) -> float:
        """Return the bandwidth of one exchange.

        Args:
            local_world_size: how many of the ranks that exchange are on one host.
            world_size: how many there are.
            collective_type: what they exchange.
        """

    @property
    @abstractmethod
    def inter_host_bw(self) -> float:
        """Between hosts."""

    @property
    @abstractmethod
    def intra_host_bw(self) -> float:
        """Within one."""


class BasicCommsBandwidths(GeneralizedCommsBandwidth):
    """One bandwidth within hosts and one between them, whatever is exchanged.

    Args:
        inter_host_bw: between hosts, in bytes a millisecond.
        intra_host_bw: within one.
    """

    def __init__(
        self,
        inter_host_bw: float = CROSS_NODE_BANDWIDTH,
        intra_host_bw: float = INTRA_NODE_BANDWIDTH,
    ) -> None:
        self._inter_host_bw = inter_host_bw
        self._intra_host_bw = intra_host_bw

    @property
    def inter_host_bw(self) -> float:
        """Between hosts."""
        return self._inter_host_bw

    @property
    def intra_host_bw(self) -> float:
        """Within one."""
        return self._intra_host_bw

    def get_bw(
        self, local_world_size: int, world_size: int, collective_type: CollectiveType
    ) -> float:
        """Return the bandwidth within a host if all ranks are on one, else that between hosts."""
        return self._intra_host_bw if world_size <= local_world_size else self._inter_host_bw


class Rates(Protocol):
    """How long the parts of a step take, in milliseconds."""

    @property
    def takes_alike(self) -> bool:
        """Whether exchanges take all ranks alike, as they bring ids and vectors of their own batches.

        Else who has a part sends its vectors, which takes that rank.
        """

    def lookup_ms(self, lookup: PartLookup) -> float:
        """Return the time of a look-up."""

    def update_ms(self, lookup: PartLookup, state: StateSize) -> float:
        """Return the time of its backward pass, with the update of a fused table.

        Args:
            lookup: what is looked up.
            state: what the optimizer keeps of the table.
        """

    def pooling_ms(self, ids: float, bags: float, columns: int) -> float:
        """Return the time in which rows that came from others are pooled, and gradients given to them.

        Args:
            ids: how many rows.
            bags: in how many bags.
            columns: of a row.
        """

    def dense_ms(self, num_bytes: float) -> float:
        """Return the time in which an optimizer updates all weights of ``num_bytes``, with their gradients."""

    def exchange_ms(self, collective: CollectiveType, num_bytes: float, world_size: int) -> float:
        """Return the time of what a part of a table adds to an exchange.

        Args:
            collective: which.
            num_bytes: that a rank sends to each other one.
            world_size: how many ranks take part.
        """

    def ids_ms(
        self, ids: float, bags: float, id_bytes: float, world_size: int, apart: bool = False
    ) -> float:
        """Return the time in which ids are brought to the ranks of their rows.

        Args:
            ids: that a rank asks another one for.
            bags: lengths of bags that go with them.
            id_bytes: of an id, with its weight.
            world_size: how many ranks ask.
            apart: whether rows of a table lie on several ranks, so that its ids are sorted one by one. Default False.
        """

    def squares_ms(self, ids: float, world_size: int) -> float:
        """Return the time in which the ranks of the columns of rows add up sums of squares, for one number a row.

        Args:
            ids: that all ranks look up in the part of a table.
            world_size: how many ranks take part.
        """

    def gather_ms(self, numbers: float) -> float:
        """Return the time in which gradients of rows are gathered from two look-ups, to be updated together.

        Args:
            numbers: of these gradients.
        """

    def slowdown(self, ranks: int) -> float:
        """Return how many times longer look-ups take on a host where as many ranks are at it together."""

    def layers_ms(
        self, alone_ms: float, gradient_bytes: float, world_size: int, ranks_a_host: int
    ) -> float:
        """Return the time of the layers of a model, with their gradients added up over the ranks.

        Args:
            alone_ms: what they take on one rank.
            gradient_bytes: of their gradients.
            world_size: how many ranks take part.
            ranks_a_host: how many of them are at it on one host.
        """

    def step_ms(self, step: CollectionStep) -> float:
        """Return what a step of a collection takes beside its look-ups and exchanges: messages, however small."""
