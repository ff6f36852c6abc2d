"""What may be wished for a table: checked where the table is known, before anything goes by it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from torchrec.distributed.planner._options import (
    ParameterConstraints,
    PlannerError,
    PlannerErrorType,
)
from torchrec.distributed.planner._topology import Topology

__all__ = ["check_wishes"]

_LISTS: dict[str, tuple[type, str]] = {
    "sharding_types": (str, "a list of text"),
    "compute_kernels": (str, "a list of text"),
    "feature_names": (str, "a list of text"),
    "pooling_factors": (Real, "a list of numbers"),
    "num_poolings": (Real, "a list of numbers"),
    "batch_sizes": (Integral, "a list of whole numbers"),
    "ranks": (Integral, "a list of whole numbers"),
    "forbidden_ranks": (Integral, "a list of whole numbers"),
}
_SINGLE: dict[str, tuple[type, str]] = {
    "min_partition": (Integral, "a whole number"),
    "together_with": (str, "text"),
    "device_group": (str, "text"),
}
_LEAST = {"pooling_factors": 0, "num_poolings": 0, "batch_sizes": 1, "min_partition": 1}


def check_wishes(
    title: str, name: str, wishes: object, topology: Topology, features: Sequence[str] | None
) -> None:
    """Refuse wishes for a table that cannot be, or say nothing.

    Args:
        title: what errors call the table.
        name: of the table.
        wishes: for it.
        topology: the ranks.
        features: of the table; None: they are not known.

    Raises:
        PlannerError: naming the table and the field.
    """
    fault = next(_faults(name, wishes, topology, features), None)
    if fault is not None:
        raise PlannerError(f"{title} {fault}", PlannerErrorType.INPUT_VALIDATION)


def _faults(
    name: str, wishes: object, topology: Topology, features: Sequence[str] | None
) -> Iterator[str]:
    """Yield what is wrong; after the first, nothing else holds."""
    if not isinstance(wishes, ParameterConstraints):
        yield f"should have its wishes as ParameterConstraints. Received {wishes!r}."
        return
    for field, (kind, words) in (_LISTS | _SINGLE).items():
        yield from _faults_of_field(field, getattr(wishes, field), kind, words)
    if wishes.use_virtual_table:
        yield "should not have `use_virtual_table`: there are no virtual tables."
    if wishes.device_group not in (None, topology.compute_device):
        yield (
            f"should be for devices of type {topology.compute_device!r}, as the topology is. "
            f"Received device_group={wishes.device_group!r}."
        )
    for field, ranks in (("ranks", wishes.ranks), ("forbidden_ranks", wishes.forbidden_ranks)):
        if ranks is not None and not set(ranks) <= set(range(topology.world_size)):
            yield f"should have `{field}` from 0 to {topology.world_size - 1}. Received {ranks}."
    if wishes.together_with == name:
        yield f"should go together with another table. Received together_with={name!r}."
    if features is not None and not set(wishes.feature_names or ()) <= set(features):
        yield f"should have `feature_names` of {list(features)}. Received {wishes.feature_names}."


def _faults_of_field(field: str, value: Any, kind: type, words: str) -> Iterator[str]:
    if value is None:
        return
    is_list = isinstance(value, Collection) and not isinstance(value, (str, Mapping))
    each = list(value) if is_list else [value]
    if is_list is not (field in _LISTS) or not all(isinstance(one, kind) for one in each):
        yield f"should have `{field}` as {words}. Received {value!r}."
        return
    for number in each if field in _LEAST else ():
        if not _LEAST[field] <= number < math.inf:  # NaN neither
            yield f"should have `{field}` of {_LEAST[field]} or more. Received {number}."
