"""Which tables the features of a model read, and what each must look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torchrec.datasets.features import (
    AnyFeature,
    DenseFeature,
    IdFeature,
    IdSource,
    MultiHotFeature,
    SequenceFeature,
    SparseFeature,
    VectorFeature,
)
from torchrec.datasets.initial_weights import FeatureInit
from torchrec.types import IdPolicy

# What features that share a table have to agree on.
_AGREE = ("ids", "rows", "dim", "init", "out_of_range", "min_count", "evict", "evict_every")


@dataclass(frozen=True)
class TableSpec:
    """An embedding table that the features ask for.

    Attributes:
        name: that of the features' ``table``, or of the only feature.
        features: the features that read it: keys of the transform's sparse output.
        rows: E; ids of the transform are in ``[0, rows)`` if ``ids`` is ``"plain"`` (as far as the
            data keeps to it) or ``"vocabulary"`` (the last row is that of unknown ids). None: to be
            found by `FeatureTransform.fit`.
        dim: D, or None for that of the model.
        ids: how ids find their rows. ``"hash"`` and ``"managed"`` are up to the table.
        out_of_range: what becomes of ids outside the rows; of ``"plain"`` ids only.
        pooling: how the ids of a bag are pooled.
        evict: which row a managed table gives up first.
        evict_every: after how many batches a managed table looks for rows to give up.
        init: initial weights, or None for those of the model.
        distinct: number of distinct ids in the training data, where `fit` counted them: exact up
            to 4,096 and for vocabularies that fit in memory, else within 2 or 3 %.

    Example:
        >>> TableSpec("user", ("user",), rows=100).ids
        'hash'
    """

    name: str
    features: tuple[str, ...]
    rows: int | None = None
    dim: int | None = None
    ids: IdSource = "hash"
    out_of_range: IdPolicy = IdPolicy.ERROR
    pooling: Literal["sum", "mean"] = "sum"
    min_count: int = 1
    evict: Literal["lfu", "lru", "distance_lfu"] = "lfu"
    evict_every: int = 100
    distinct: int | None = None
    init: FeatureInit | None = None


def table_of(name: str, feature: AnyFeature) -> str | None:
    """Return the name of the table that a feature reads, None if it is numbers."""
    if isinstance(feature, VectorFeature):
        return None
    if isinstance(feature, DenseFeature):
        return name if feature.buckets else None
    return feature.table or name


def declared_tables(features: Mapping[str, AnyFeature]) -> list[TableSpec]:
    """Group features by their tables, in the order in which the tables are first named.

    Raises:
        ValueError: two features share a table and do not agree on what it is.
    """
    groups: dict[str, list[str]] = {}
    for name, feature in features.items():
        table = table_of(name, feature)
        if table is not None:
            groups.setdefault(table, []).append(name)
    return [_declared(table, names, features) for table, names in groups.items()]


def _declared(table: str, names: list[str], features: Mapping[str, AnyFeature]) -> TableSpec:
    readers: dict[str, _IdFeature] = {}
    bags: dict[
        str, MultiHotFeature | SequenceFeature
    ] = {}  # one id is the same whichever way it is pooled
    rows = dim = init = None
    for name in names:
        feature = features[name]
        if isinstance(feature, IdFeature):
            readers[name] = feature
            rows, dim = rows or feature.rows, dim or feature.dim
            init = init or feature.init
            if not isinstance(feature, SparseFeature):
                bags[name] = feature
        elif len(names) > 1:
            other = next(n for n in names if n != name)
            raise ValueError(
                f"Table '{table}' should hold the buckets of feature '{name}' alone. "
                f"Received feature '{other}' too."
            )
        elif isinstance(feature, DenseFeature):
            buckets = (feature.buckets or 0) + 1
            return TableSpec(
                table, (name,), rows=buckets, dim=feature.dim, ids="plain", init=feature.init
            )
    if len(readers) > 1:
        _check_agreement(table, _AGREE, readers)
        _check_agreement(table, ("pooling",), bags)
    first = next(iter(readers.values()))
    return TableSpec(
        table,
        tuple(names),
        rows=rows,
        dim=dim,
        ids=first.ids,
        out_of_range=first.out_of_range,
        pooling=next(iter(bags.values())).pooling if bags else "sum",
        min_count=first.min_count,
        evict=first.evict,
        evict_every=first.evict_every,
        init=init,
    )


_IdFeature = SparseFeature | MultiHotFeature | SequenceFeature


def _check_agreement(table: str, fields: Sequence[str], features: Mapping[str, _IdFeature]) -> None:
    """Refuse features that differ in a field; one that leaves it open goes along with the others."""
    for field in fields:
        first, expected = "", None
        for name, feature in features.items():
            value = getattr(feature, field)
            if expected is None:
                first, expected = name, value
            elif value not in (None, expected):
                raise ValueError(
                    f"`{field}` of features '{first}' and '{name}' should agree, as they share table "
                    f"'{table}'. Received {_text(expected)} and {_text(value)}."
                )


def _text(value: object) -> object:
    return value.value if isinstance(value, IdPolicy) else value
