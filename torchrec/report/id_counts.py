"""How often each id came in the training data, and what that means for its predictions and its row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from torchrec.datasets.features import IdFeature
from torchrec.modules.collection import collections_in
from torchrec.report.slices import values_of
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

if TYPE_CHECKING:
    import pyarrow as pa

    from torchrec.report.predictions import Trained
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ROWS = 5_000_000  # of the training data that are counted at most
EDGES = (
    1,
    2,
    5,
    20,
    100,
    1_000,
    10_000,
)  # of frequencies: each up to the next, the last without end
_MANY = 50  # distinct ids; below, all come often


@dataclass(frozen=True)
class IdCounts:
    """How often the ids of a feature came.

    Attributes:
        feature: that reads them.
        ids: distinct, in no order.
        counts: of each.
        rows: of the training data that were counted.
    """

    feature: str
    ids: pa.Array
    counts: Integers
    rows: int

    def of(self, values: pa.Array) -> Integers:
        """Return how often some ids came; 0 for those that did not."""
        import pyarrow.compute as pc

        places = pc.index_in(values.cast(self.ids.type), value_set=self.ids)
        found = places.fill_null(-1).to_numpy(zero_copy_only=False)
        return np.where(found >= 0, self.counts[found], 0)


def buckets_of(counts: Integers) -> Integers:
    """Return the bucket of frequencies: 0 for what never came, then those of `EDGES`.

    Example:
        >>> buckets_of(np.array([0, 1, 4, 99, 20_000])).tolist()
        [0, 1, 2, 4, 7]
    """
    return np.searchsorted(EDGES, counts, side="right")


def bucket_name(bucket: int) -> str:
    """Write a bucket of frequencies.

    Example:
        >>> [bucket_name(bucket) for bucket in (0, 1, 2, 7)]
        ['never', '1', '2 to 4', '10,000 or more']
    """
    if bucket == 0:
        return "never"
    low = EDGES[bucket - 1]
    if bucket == len(EDGES):
        return f"{low:,} or more"
    high = EDGES[bucket] - 1
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def count_ids(trained: Trained, features: list[str]) -> list[IdCounts]:
    """Count the ids of some features in the training data.

    Args:
        trained: the model and its data.
        features: those whose values are ids.

    Returns:
        Those with many ids.
    """
    import pyarrow as pa

    declared = trained.transform.features
    columns = list(dict.fromkeys(declared[name].column or name for name in features))
    parts: dict[str, list[pa.Table]] = {name: [] for name in features}
    rows = 0
    for table in trained.sources.train.scan(columns):
        for name in features:
            values = values_of(name, declared[name], table)
            if values is not None:
                counts = np.bincount(values.codes, minlength=len(values.names))
                parts[name].append(pa.table({"id": values.names, "count": counts}))
        rows += table.num_rows
        if rows >= ROWS:
            break
    found = []
    for name, counted in parts.items():
        if counted:
            sums = pa.concat_tables(counted).group_by("id").aggregate([("count", "sum")])
            sums = sums.filter(pa.compute.is_valid(sums["id"]))
            if sums.num_rows >= _MANY:
                ids = sums["id"].combine_chunks()
                found.append(IdCounts(name, ids, sums["count_sum"].to_numpy(), rows))
    return found


def id_features(trained: Trained) -> list[str]:
    """Return the features whose values are ids, one or several to a row."""
    return [
        name
        for name, feature in trained.transform.features.items()
        if isinstance(feature, IdFeature)
    ]


def norms_of(trained: Trained, counts: IdCounts, ids: pa.Array, like: pa.Table) -> Floats:
    """Return the norms of the rows that some ids have.

    Each id is looked up as the only one of a sample, so that hashing, vocabularies and maps are those
    of the model.

    Args:
        trained: the model.
        counts: of the feature that reads the ids.
        ids: which, ``(N,)``.
        like: a table with the columns of the features, of one row or more.

    Returns:
        ``(N,)``; none if the model does not look the feature up in a table of its own.
    """
    import pyarrow as pa

    feature = trained.transform.features[counts.feature]
    name = feature.column or counts.feature
    table = like.take(np.zeros(len(ids), np.int64))
    type = like.schema.field(name).type
    if pa.types.is_list(type) or pa.types.is_large_list(type):
        offsets = pa.array(np.arange(len(ids) + 1), pa.int32())
        column = pa.ListArray.from_arrays(offsets, ids)
    else:
        column = ids
    table = table.set_column(table.schema.get_field_index(name), name, column)
    sparse = trained.transform.transform(table, labels=False).sparse_features
    with torch.inference_mode():
        for _, collection in collections_in(trained.model):
            vectors = _vectors(collection, sparse, counts.feature)
            if vectors is not None and len(vectors) == len(ids):
                norms: Floats = vectors.double().norm(dim=1).numpy()
                return norms
    return np.empty(0)


def _vectors(collection: object, features: KeyedJaggedTensor, feature: str) -> torch.Tensor | None:
    """Return what a collection gives for a feature; None if it does not read it."""
    if not isinstance(collection, torch.nn.Module):
        return None
    found = collection(features)
    found = found[0] if isinstance(found, tuple) else found
    if isinstance(found, KeyedTensor):
        return found[feature] if feature in found.keys() else None  # noqa: SIM118
    if isinstance(found, Mapping) and isinstance(found.get(feature), JaggedTensor):
        values: torch.Tensor = found[feature].values()
        return values
    return None
