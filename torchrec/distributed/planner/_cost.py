"""How long a step takes where a table is placed in a certain way, as our sharded collections do it."""

from __future__ import annotations

from dataclasses import dataclass

from torchrec.distributed.planner._bandwidths import (
    CollectiveType,
    PartLookup,
    Rates,
    StateSize,
)
from torchrec.distributed.planner._topology import Perf
from torchrec.distributed.types import ShardingType

__all__ = ["BY_ROWS", "Work", "perf_of"]

# Types under which the rows of a table lie in several places.
BY_ROWS = frozenset({ShardingType.ROW_WISE, ShardingType.TABLE_ROW_WISE, ShardingType.GRID_SHARD})

_STATELESS = StateSize(0, 0)


@dataclass(frozen=True)
class Work:
    """A table, what a step of one rank asks of it, and under which type it is placed.

    Attributes:
        sharding_type: of the table.
        compute_kernel: value of an `EmbeddingComputeKernel`.
        rows: of the whole table.
        row_bytes: of one number of a row.
        bands: in how many places its rows lie.
        world_size: how many ranks ask.
        ids: how many one rank asks for.
        bags: in how many bags.
        is_pooled: whether a bag gives one vector.
        id_bytes: of an id on the way, with its weight.
        forward_bytes: of a number of a vector on the way.
        backward_bytes: of a number of its gradient on the way.
        backward_factor: how many times longer the backward pass takes, as for weighted features.
        is_inference: whether there is no backward pass.
        ranks_a_host: how many ranks look up at once where the part is.
        state: what the optimizer keeps of the table. Default: nothing.
        touched: numbers of rows and vectors that a rank comes by in a step, of all tables; None: that is not known.
        adds_squares: whether the update needs sums of squares of whole rows, whose columns lie apart.
    """

    sharding_type: ShardingType
    compute_kernel: str
    rows: int
    row_bytes: float
    bands: int
    world_size: int
    ids: float
    bags: float
    is_pooled: bool
    id_bytes: float = 8
    forward_bytes: float = 4
    backward_bytes: float = 4
    backward_factor: float = 1.0
    is_inference: bool = False
    ranks_a_host: int = 1
    state: StateSize = _STATELESS
    touched: float | None = None
    adds_squares: bool = False

    @property
    def sends_rows(self) -> bool:
        """Whether rows are sent, and pooled where the sample is: fewer than sums from each place would be."""
        return not self.is_pooled or (
            self.sharding_type in BY_ROWS and self.bands > 1 and self.ids <= self.bags * self.bands
        )


def perf_of(work: Work, rows: int, columns: int, rates: Rates) -> Perf:
    """Return the milliseconds that a part of a table takes the rank that has it, in a step of all ranks.

    Args:
        work: the table, and what is asked of it.
        rows: of the part.
        columns: of the part.
        rates: how long things take.
    """
    if work.sharding_type is ShardingType.DATA_PARALLEL:
        return _copy(work, rows, columns, rates)
    by_rows = work.sharding_type in BY_ROWS
    share = rows / work.rows if by_rows and work.rows else 1.0
    ids = work.ids * share  # that each rank asks this one for
    vectors = ids if work.sends_rows else work.bags
    everyone = work.world_size
    part_bytes = rows * columns * work.row_bytes
    lookup = PartLookup(
        everyone * ids,
        everyone * vectors,
        columns,
        part_bytes,
        work.compute_kernel,
        work.touched,
    )
    forward = rates.lookup_ms(lookup)
    backward = work.backward_factor * rates.update_ms(lookup, work.state)
    pooling = 0.0
    if work.sends_rows and by_rows:
        # Rows that came back are pooled, or put in order, by who asked for them, and so are their gradients.
        pooling = rates.pooling_ms(everyone * ids, everyone * work.bags * share, columns)
    if work.compute_kernel == "dense":
        backward += rates.dense_ms(part_bytes)
    squares = rates.squares_ms(everyone * ids, everyone) if work.adds_squares else 0.0
    slower = rates.slowdown(work.ranks_a_host)
    numbers = vectors * columns

    def exchange(num_bytes: float) -> float:
        return rates.exchange_ms(CollectiveType.ALL_TO_ALL, num_bytes, everyone)

    lengths = 0.0 if work.sends_rows else work.bags
    asked = rates.ids_ms(ids, lengths, work.id_bytes, everyone, by_rows and work.bands > 1)
    sent = exchange(numbers * work.forward_bytes)
    returned = 0.0 if work.is_inference else exchange(numbers * work.backward_bytes)
    if rates.takes_alike:
        backward = 0.0 if work.is_inference else slower * backward
        alike = asked + sent + returned + pooling
        return Perf(slower * forward, 0.0, backward, squares, alike=alike)
    return Perf(
        fwd_compute=slower * (forward + pooling / 2),
        fwd_comms=sent,
        bwd_compute=0.0 if work.is_inference else slower * (backward + pooling / 2),
        bwd_comms=0.0 if work.is_inference else returned + squares,
        input_dist_comms=asked,
    )


def _copy(work: Work, rows: int, columns: int, rates: Rates) -> Perf:
    """A rank looks its own ids up; then gradients of all rows are added up over the ranks."""
    vectors = work.bags if work.is_pooled else work.ids
    num_bytes = rows * columns * work.row_bytes
    slower = rates.slowdown(work.ranks_a_host)
    lookup = PartLookup(work.ids, vectors, columns, num_bytes, work.compute_kernel, work.touched)
    forward = rates.lookup_ms(lookup)
    if work.is_inference:
        return Perf(slower * forward, 0.0, 0.0, 0.0)
    backward = rates.update_ms(lookup, work.state)
    return Perf(
        fwd_compute=slower * forward,
        fwd_comms=0.0,
        bwd_compute=slower * (work.backward_factor * backward + rates.dense_ms(num_bytes)),
        # Each rank sends and receives its share of the sums twice.
        bwd_comms=rates.exchange_ms(
            CollectiveType.ALL_REDUCE, 2 * num_bytes / work.world_size, work.world_size
        ),
    )
