"""How long things take on a machine, as measured: values, their file, and what lies between them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from torchrec.distributed.planner._bandwidths import (
    CollectionStep,
    CollectiveType,
    PartLookup,
    StateSize,
)

__all__ = ["Calibration", "ExchangeRate", "LookupRate", "UpdateRate", "between"]

_VERSION = 5
_ID_BYTES = 8.0  # of an id without a weight
# The least that numbers can be; the others can be 0.
_LEAST = {"tables": 1, "columns": 1, "ids": 1, "rows": 1, "world_size": 2}


@dataclass(frozen=True)
class LookupRate:
    """What looking up takes, in tables of one kind, and its backward pass without the update.

    Attributes:
        columns: of the table.
        rows: of the table.
        forward_id_ns: nanoseconds of an id.
        forward_bag_ns: of a vector that comes of some ids.
        backward_id_ns: of an id whose gradient is found.
        backward_bag_ns: of a vector's gradient.
    """

    columns: int
    rows: int
    forward_id_ns: float
    forward_bag_ns: float
    backward_id_ns: float
    backward_bag_ns: float

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True)
class UpdateRate:
    """What an update takes a row, with how much longer rows of large tables take.

    Attributes:
        columns: of the table.
        rows: of the table.
        ids: that a step looks up: the more, the nearer together are the rows that it updates.
        a_weight: numbers that the optimizer keeps for each weight.
        a_row: numbers that it keeps for each row.
        row_ns: nanoseconds of a row that some id chooses.
    """

    columns: int
    rows: int
    ids: int
    a_weight: int
    a_row: int
    row_ns: float

    def __post_init__(self) -> None:
        _check_numbers(self)

    @property
    def state(self) -> StateSize:
        """What the optimizer keeps."""
        return StateSize(self.a_weight, self.a_row)


@dataclass(frozen=True)
class ExchangeRate:
    """What exchanges between some ranks take.

    Attributes:
        world_size: how many ranks.
        slowdown: how many times longer look-ups take where as many ranks are at it together on one host.
        step_ms: more of a step of a collection, whatever its tables, than on one rank: messages, calls.
        part_ms: of each part of a table, however small: its places in messages.
        rows_step_ms: more, where rows of some table lie apart.
        squares_step_ms: more, where ranks add up squares of rows whose columns lie apart.
        ns_a_byte: of vectors and gradients that a rank sends, with packing them.
        ns_an_id: of ids that a rank asks for, which are given rows, sent and taken in.
        apart_ns_an_id: more, where rows of the table lie apart: such ids are sorted by ranks one by one.
        reduce_ns_a_byte: of gradients of another rank that are added up, with copying one's own for the others.
        layers_slowdown: how many times longer layers take where as many ranks are at it together on one host.
        layers_step_ms: more of a step of layers, whose gradients are added up.
        rows_ns_a_number: of rows that are pooled by who asked for them, each number once.
        squares_ns_an_id: of ids of rows whose squares are added up.
        gather_ns_a_number: of gradients of rows that are gathered from two look-ups before an update.
    """

    world_size: int
    slowdown: float
    step_ms: float
    part_ms: float
    rows_step_ms: float
    squares_step_ms: float
    ns_a_byte: float
    ns_an_id: float
    apart_ns_an_id: float
    reduce_ns_a_byte: float
    layers_slowdown: float
    layers_step_ms: float
    rows_ns_a_number: float
    squares_ns_an_id: float
    gather_ns_a_number: float

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True)
class Calibration:
    """Rates of a machine; a `Topology` takes it as ``rates``.

    Attributes:
        machine: what was measured, in words.
        memory: bytes that it has.
        part_ms: of a table more in a collection, however small.
        tables: that collections had whose look-ups were measured.
        vector_bytes: of the vectors that those gave.
        vector_ns_a_byte: more of each byte of vectors beyond these, which caches do not hold.
        sequence_ms: of a table more in a collection of sequences, beside that.
        step_ms_alone: of a step of a collection on one rank, whatever its tables.
        dense_ns_a_byte: of weights that an optimizer outside of the collection trains.
        lookups: of every combination of some numbers of columns and rows of 32 bits a number.
        updates: of every combination of some numbers of columns, rows and ids, and kinds of optimizers.
        exchanges: of some numbers of ranks.

    Raises:
        ValueError: if a number is below 0 or not finite, or a combination is missing.
    """

    machine: str
    memory: int
    part_ms: float
    tables: int
    vector_bytes: int
    vector_ns_a_byte: float
    sequence_ms: float
    step_ms_alone: float
    dense_ns_a_byte: float
    lookups: tuple[LookupRate, ...]
    updates: tuple[UpdateRate, ...]
    exchanges: tuple[ExchangeRate, ...]

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_grid(
            "`lookups` should have every combination of columns and rows",
            [(rate.columns, rate.rows) for rate in self.lookups],
        )
        _check_grid(
            "`updates` should have every combination of columns, rows, ids and states",
            [(r.columns, r.rows, r.ids, (r.a_weight, r.a_row)) for r in self.updates],
        )

    @property
    def takes_alike(self) -> bool:
        """Ranks are slower at packing and unpacking than the memory that they share."""
        return True

    def lookup_ms(self, lookup: PartLookup) -> float:
        """As measured for tables of as many columns and rows."""
        at, apart = _place(lookup), self._apart(lookup)
        of_ids = {_point(rate): rate.forward_id_ns for rate in self.lookups}
        of_bags = {_point(rate): rate.forward_bag_ns for rate in self.lookups}
        first = _chosen(lookup.ids, _rows(lookup))
        ns = first * between(of_ids, apart) + (lookup.ids - first) * between(of_ids, at)
        return self.part_ms + (ns + lookup.vectors * between(of_bags, at)) / 1e6

    def _apart(self, lookup: PartLookup) -> tuple[float, float]:
        """Return of which table rows that a step finds first are found as fast: the more lies between two steps.

        Rates were measured with `tables` tables of a kind.
        """
        own = lookup.columns * (lookup.ids + 2 * lookup.vectors)
        crowd = 1.0
        if lookup.touched is not None and own > 0:
            crowd = lookup.touched / (self.tables * own)
        return float(lookup.columns), max(_rows(lookup) * crowd, 1.0)

    def update_ms(self, lookup: PartLookup, state: StateSize) -> float:
        """As measured for tables of as many columns and rows, and the optimizer that keeps most nearly as much."""
        at, ids = _place(lookup), lookup.ids
        an_id = between({_point(rate): rate.backward_id_ns for rate in self.lookups}, at)
        a_bag = between({_point(rate): rate.backward_bag_ns for rate in self.lookups}, at)
        found = self.part_ms + (ids * an_id + lookup.vectors * a_bag) / 1e6
        if lookup.kernel == "dense" or ids <= 0:
            return found
        nearest = min(
            {rate.state for rate in self.updates},
            key=lambda each: (
                2 * abs(each.a_weight - state.a_weight) + abs(each.a_row - state.a_row)
            ),
        )
        updates = {
            (*_point(rate), float(rate.ids)): rate.row_ns
            for rate in self.updates
            if rate.state == nearest
        }
        a_row = between(updates, (*self._apart(lookup), ids))
        return found + _chosen(ids, _rows(lookup)) * a_row / 1e6

    def pooling_ms(self, ids: float, bags: float, columns: int) -> float:
        """As measured for rows that are pooled by who asked for them; the world does not matter."""
        return (
            ids
            * columns
            * max((rate.rows_ns_a_number for rate in self.exchanges), default=0.0)
            / 1e6
        )

    def dense_ms(self, num_bytes: float) -> float:
        """As measured."""
        return num_bytes * self.dense_ns_a_byte / 1e6

    def exchange_ms(self, collective: CollectiveType, num_bytes: float, world_size: int) -> float:
        """As measured between as many ranks, or the nearest number of them."""
        if world_size < 2 or not self.exchanges:
            return 0.0
        rate = self._nearest(world_size)
        is_sum = collective is CollectiveType.ALL_REDUCE
        ns = rate.reduce_ns_a_byte if is_sum else rate.ns_a_byte
        return (world_size - 1) * num_bytes * ns / 1e6

    def ids_ms(
        self, ids: float, bags: float, id_bytes: float, world_size: int, apart: bool = False
    ) -> float:
        """As measured for ids without weights; a length of a bag counts for half of one."""
        if world_size < 2 or not self.exchanges:
            return 0.0
        rate = self._nearest(world_size)
        ns = (ids * id_bytes / _ID_BYTES + bags / 2) * rate.ns_an_id
        return world_size * (ns + (ids * rate.apart_ns_an_id if apart else 0.0)) / 1e6

    def squares_ms(self, ids: float, world_size: int) -> float:
        """As measured."""
        if world_size < 2 or not self.exchanges:
            return 0.0
        return ids * self._nearest(world_size).squares_ns_an_id / 1e6

    def gather_ms(self, numbers: float) -> float:
        """As measured; the world does not matter."""
        return (
            numbers * max((rate.gather_ns_a_number for rate in self.exchanges), default=0.0) / 1e6
        )

    def slowdown(self, ranks: int) -> float:
        """As measured where as many ranks, or the nearest number of them, are at it together."""
        return 1.0 if ranks < 2 or not self.exchanges else self._nearest(ranks).slowdown

    def layers_ms(
        self, alone_ms: float, gradient_bytes: float, world_size: int, ranks_a_host: int
    ) -> float:
        """As measured.

        On one host, where that was, each rank reads what all others have; else it sends and receives its share of the
        sums twice.
        """
        if world_size < 2 or not self.exchanges:
            return alone_ms
        share = 1.0 if ranks_a_host >= world_size else 2 / world_size
        sums = self.exchange_ms(CollectiveType.ALL_REDUCE, share * gradient_bytes, world_size)
        slower = 1.0 if ranks_a_host < 2 else self._nearest(ranks_a_host).layers_slowdown
        return alone_ms * slower + sums + self._nearest(world_size).layers_step_ms

    def step_ms(self, step: CollectionStep) -> float:
        """As measured; between more ranks than were, as many times longer as there are more messages."""
        alone = self.step_ms_alone + (0.0 if step.is_pooled else step.tables * self.sequence_ms)
        alone += max(step.vector_bytes - self.vector_bytes, 0.0) * self.vector_ns_a_byte / 1e6
        if step.world_size < 2 or not self.exchanges:
            return alone
        rate = self._nearest(step.world_size)
        of_step = rate.step_ms + step.parts * rate.part_ms
        of_step += rate.rows_step_ms if step.by_rows else 0.0
        of_step += rate.squares_step_ms if step.adds_squares else 0.0
        return alone + of_step * (step.world_size - 1) / (rate.world_size - 1)

    def _nearest(self, world_size: int) -> ExchangeRate:
        return min(self.exchanges, key=lambda rate: abs(math.log(rate.world_size / world_size)))

    def to_json(self) -> str:
        """Write it as JSON, which `from_json` reads."""
        return json.dumps({"version": _VERSION, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Read what `to_json` has written.

        Args:
            text: JSON.

        Raises:
            ValueError: if it is no such text.
        """
        try:
            data = dict(json.loads(text))
            version = data.pop("version", None)
            if version != _VERSION:
                raise ValueError(f"version {version!r}")
            lookups = tuple(LookupRate(**rate) for rate in data.pop("lookups"))
            updates = tuple(UpdateRate(**rate) for rate in data.pop("updates"))
            exchanges = tuple(ExchangeRate(**rate) for rate in data.pop("exchanges"))
            return cls(**data, lookups=lookups, updates=updates, exchanges=exchanges)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"A calibration should be JSON of version {_VERSION}, as `torchrec plan calibrate` writes it. "
                f"Received {error}."
            ) from error


def _point(rate: LookupRate | UpdateRate) -> tuple[float, ...]:
    return float(rate.columns), float(rate.rows)


def _chosen(ids: float, rows: float) -> float:
    """Return how many rows some ids choose, each counted once."""
    return -rows * math.expm1(-ids / rows)


def _rows(lookup: PartLookup) -> float:
    return max(lookup.table_bytes / (4 * lookup.columns), 1.0)


def _place(lookup: PartLookup) -> tuple[float, float]:
    return float(lookup.columns), _rows(lookup)


def _check_grid(what: str, points: Sequence[tuple[object, ...]]) -> None:
    """Check that there are points, and one for every combination of what they have on each axis."""
    there = set(points)
    wanted = set(itertools.product(*map(set, zip(*there, strict=True))))
    if not there or wanted != there:
        example = f" without {min(wanted - there)}" if there else ""
        raise ValueError(f"{what}, and some. Received {len(there)}{example}.")


def _check_numbers(rates: Calibration | LookupRate | UpdateRate | ExchangeRate) -> None:
    """Check the numbers of a class; text and tuples are left alone."""
    for field in fields(rates):
        if field.type not in ("int", "float"):
            continue
        value, least = getattr(rates, field.name), _LEAST.get(field.name, 0)
        if not (isinstance(value, int | float) and least <= value < math.inf):  # NaN neither
            raise ValueError(f"`{field.name}` should be {least} or more. Received {value!r}.")


def between(points: Mapping[tuple[float, ...], float], at: Sequence[float]) -> float:
    """Return what lies between points of a grid, in proportion to how near they are.

    Args:
        points: coordinates -> value, for every combination of some numbers on each axis, all above 0.
        at: where; nearness is that of coordinates on the first axis, and of their logarithms on the others. Beyond the
            grid, what is at its border counts, by the first axis as many times more as that is.

    Example:
        >>> between({(1.0, 1.0): 2.0, (1.0, 100.0): 8.0}, [1.0, 10.0])
        5.0
        >>> between({(1.0, 1.0): 2.0, (1.0, 100.0): 8.0}, [3.0, 200.0])
        24.0
    """
    axes = [sorted({point[axis] for point in points}) for axis in range(len(at))]
    corners: list[list[tuple[float, float]]] = []
    for number, (axis, x) in enumerate(zip(axes, at, strict=True)):
        scale = math.log if number else float
        high = next((i for i, value in enumerate(axis) if value >= x), len(axis) - 1)
        low = max(high - 1, 0) if axis[high] > x else high
        if axis[low] == axis[high]:
            corners.append([(axis[low], 1.0)])
            continue
        share = (scale(x) - scale(axis[low])) / (scale(axis[high]) - scale(axis[low]))
        share = min(max(share, 0.0), 1.0)
        corners.append([(axis[low], 1 - share), (axis[high], share)])
    total = sum(
        math.prod(share for _, share in corner) * points[tuple(x for x, _ in corner)]
        for corner in itertools.product(*corners)
    )
    return total * max(1.0, at[0] / axes[0][-1])
