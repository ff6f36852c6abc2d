"""How long things take on a machine, as measured: values, their file, and what lies between them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from torchrec.distributed.planner._bandwidths import CollectiveType

__all__ = ["Calibration", "ExchangeRate", "LookupRate", "between"]

_VERSION = 2
_ID_BYTES = 8.0  # of an id without a weight
# The least that numbers can be; the others can be 0.
_LEAST = {"columns": 1, "ids_a_bag": 1, "rows": 1, "world_size": 2}


@dataclass(frozen=True)
class LookupRate:
    """What looking up and training takes an id, in tables of one kind.

    Attributes:
        columns: of the table.
        ids_a_bag: how many ids give one vector.
        rows: of the table.
        forward_ns: nanoseconds an id.
        backward_ns: nanoseconds an id, with the update.
    """

    columns: int
    ids_a_bag: float
    rows: int
    forward_ns: float
    backward_ns: float

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True)
class ExchangeRate:
    """What exchanges between some ranks take.

    Attributes:
        world_size: how many ranks.
        slowdown: how many times longer look-ups take where as many ranks are at it together on one host.
        step_ms: of a step of a collection, whatever its tables: messages, calls.
        table_ms: of each table, however small: its places in messages.
        rows_step_ms: more, where rows of some table lie apart.
        squares_step_ms: more, where ranks add up squares of rows whose columns lie apart.
        ns_a_byte: of vectors and gradients that a rank sends, with packing them.
        ns_an_id: of ids that a rank asks for, which are given rows, sorted by ranks, sent and taken in.
        reduce_ns_a_byte: of gradients of copies, which are added up over the ranks.
        rows_ns_a_number: of rows that are pooled by who asked for them, each number once.
        squares_ns_an_id: of ids of rows whose squares are added up.
    """

    world_size: int
    slowdown: float
    step_ms: float
    table_ms: float
    rows_step_ms: float
    squares_step_ms: float
    ns_a_byte: float
    ns_an_id: float
    reduce_ns_a_byte: float
    rows_ns_a_number: float
    squares_ns_an_id: float

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True)
class Calibration:
    """Rates of a machine; a `Topology` takes it as ``rates``.

    Attributes:
        machine: what was measured, in words.
        memory: bytes that it has.
        part_ms: of a table more in a collection, however small.
        step_ms_alone: of a step of a collection on one rank, whatever its tables.
        dense_ns_a_byte: of weights that an optimizer outside of the collection trains.
        lookups: of every combination of some numbers of columns, ids a bag and rows of 32 bits a number.
        exchanges: of some numbers of ranks.

    Raises:
        ValueError: if a number is below 0 or not finite, or a combination is missing.
    """

    machine: str
    memory: int
    part_ms: float
    step_ms_alone: float
    dense_ns_a_byte: float
    lookups: tuple[LookupRate, ...]
    exchanges: tuple[ExchangeRate, ...]

    def __post_init__(self) -> None:
        _check_numbers(self)
        there = {(rate.columns, rate.ids_a_bag, rate.rows) for rate in self.lookups}
        wanted = set(itertools.product(*map(set, zip(*there, strict=True))))
        if not there or wanted != there:
            example = f" without {min(wanted - there)}" if there else ""
            raise ValueError(
                "`lookups` should have every combination of columns, ids a bag and rows, and some. "
                f"Received {len(there)}{example}."
            )

    def lookup_ms(
        self, ids: float, vectors: float, columns: int, table_bytes: float, kernel: str
    ) -> float:
        """As measured for tables of as many columns and bytes, and bags as long."""
        return self.part_ms + ids * self._ns(ids, vectors, columns, table_bytes)[0] / 1e6

    def update_ms(
        self, ids: float, vectors: float, columns: int, table_bytes: float, kernel: str
    ) -> float:
        """As measured for tables of as many columns and bytes, and bags as long."""
        return self.part_ms + ids * self._ns(ids, vectors, columns, table_bytes)[1] / 1e6

    def _ns(
        self, ids: float, vectors: float, columns: int, table_bytes: float
    ) -> tuple[float, float]:
        length = ids / vectors if vectors > 0 else 1.0
        at = (float(columns), max(length, 1.0), max(table_bytes / (4 * columns), 1.0))
        points = {
            (float(r.columns), r.ids_a_bag, float(r.rows)): (r.forward_ns, r.backward_ns)
            for r in self.lookups
        }
        return (
            between({point: ns[0] for point, ns in points.items()}, at),
            between({point: ns[1] for point, ns in points.items()}, at),
        )

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

    def ids_ms(self, ids: float, bags: float, id_bytes: float, world_size: int) -> float:
        """As measured for ids without weights; a length of a bag counts for half of one."""
        if world_size < 2 or not self.exchanges:
            return 0.0
        sent = ids * id_bytes / _ID_BYTES + bags / 2
        return world_size * sent * self._nearest(world_size).ns_an_id / 1e6

    def squares_ms(self, ids: float, world_size: int) -> float:
        """As measured."""
        if world_size < 2 or not self.exchanges:
            return 0.0
        return ids * self._nearest(world_size).squares_ns_an_id / 1e6

    def slowdown(self, ranks: int) -> float:
        """As measured where as many ranks, or the nearest number of them, are at it together."""
        return 1.0 if ranks < 2 or not self.exchanges else self._nearest(ranks).slowdown

    def step_ms(
        self, world_size: int, tables: int = 1, by_rows: bool = False, adds_squares: bool = False
    ) -> float:
        """As measured; between more ranks than were, as many times longer as there are more messages."""
        if world_size < 2 or not self.exchanges:
            return self.step_ms_alone
        rate = self._nearest(world_size)
        of_step = rate.step_ms + tables * rate.table_ms + (rate.rows_step_ms if by_rows else 0.0)
        of_step += rate.squares_step_ms if adds_squares else 0.0
        more = max(of_step - self.step_ms_alone, 0.0) * (world_size - 1) / (rate.world_size - 1)
        return self.step_ms_alone + more

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
            exchanges = tuple(ExchangeRate(**rate) for rate in data.pop("exchanges"))
            return cls(**data, lookups=lookups, exchanges=exchanges)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"A calibration should be JSON of version {_VERSION}, as `torchrec plan calibrate` writes it. "
                f"Received {error}."
            ) from error


def _check_numbers(rates: Calibration | LookupRate | ExchangeRate) -> None:
    """Check the numbers of a class; text and tuples are left alone."""
    for field in fields(rates):
        if field.type not in ("int", "float"):
            continue
        value, least = getattr(rates, field.name), _LEAST.get(field.name, 0)
        if not (isinstance(value, int | float) and least <= value < math.inf):  # NaN neither
            raise ValueError(f"`{field.name}` should be {least} or more. Received {value!r}.")


def between(points: Mapping[tuple[float, ...], float], at: Sequence[float]) -> float:
    """Return what lies between points of a grid: in the middle of the logarithms of two, that of their values.

    Args:
        points: coordinates -> value, for every combination of some numbers on each axis, all above 0.
        at: where; beyond the grid, what is at its border counts, by the first axis as many times more as that is.

    Example:
        >>> between({(1.0,): 2.0, (100.0,): 8.0}, [10.0])
        4.0
        >>> round(between({(1.0,): 2.0, (100.0,): 8.0}, [200.0]), 9)
        16.0
    """
    axes = [sorted({point[axis] for point in points}) for axis in range(len(at))]
    corners: list[list[tuple[float, float]]] = []
    for axis, x in zip(axes, at, strict=True):
        high = next((i for i, value in enumerate(axis) if value >= x), len(axis) - 1)
        low = max(high - 1, 0) if axis[high] > x else high
        if axis[low] == axis[high]:
            corners.append([(axis[low], 1.0)])
            continue
        share = (math.log(x) - math.log(axis[low])) / (math.log(axis[high]) - math.log(axis[low]))
        share = min(max(share, 0.0), 1.0)
        corners.append([(axis[low], 1 - share), (axis[high], share)])
    total = 0.0
    for corner in itertools.product(*corners):
        weight = math.prod(share for _, share in corner)
        value = points[tuple(x for x, _ in corner)]
        total += weight * math.log(max(value, 1e-9))
    return math.exp(total) * max(1.0, at[0] / axes[0][-1])
