"""What each column of a file is to a model: the declarations that an experiment file holds.

A declaration says which column a feature reads and what becomes of its values; the transform
(`torchrec.datasets.transform`) does it, in training and in serving alike.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from torchrec.types import IdPolicy

IdSource = Literal["plain", "hash", "vocabulary", "managed"]


_STRICT = ConfigDict(extra="forbid", frozen=True)


class DenseFeature(BaseModel):
    """A number. Nulls, NaN and infinities are missing values; they are counted and filled.

    In this order: ``log``, statistics, ``fill``, ``standardise``. With ``buckets`` the number
    becomes an id instead: that of its quantile in the training data, with one more for missing.
    """

    model_config = _STRICT

    type: Literal["dense"] = "dense"
    column: str | None = None
    fill: float | Literal["mean"] = "mean"
    log: bool = False
    standardise: bool = True
    buckets: Annotated[int, Field(ge=2, le=65_536)] | None = None
    dim: PositiveInt | None = None


class IdFeature(BaseModel):
    """Ids, integers or strings, that choose rows of a table.

    ``ids`` says how an id finds its row: ``plain`` (integers in ``[0, rows)``), ``hash`` (any
    integer or string, hashed into ``rows``), ``vocabulary`` (the ids of the training data seen at
    least ``min_count`` times, the most frequent ``rows`` of them; all others share one further
    row) or ``managed`` (any id, a row each while it is warm).
    """

    model_config = _STRICT

    column: str | None = None
    ids: IdSource = "hash"
    rows: PositiveInt | None = None
    dim: PositiveInt | None = None
    table: str | None = None
    out_of_range: IdPolicy = IdPolicy.ERROR
    min_count: PositiveInt = 1
    evict: Literal["lfu", "lru", "distance_lfu"] = "lfu"
    evict_every: PositiveInt = 100


class SparseFeature(IdFeature):
    """One id a sample; a null is an empty bag."""

    type: Literal["sparse"] = "sparse"


class MultiHotFeature(IdFeature):
    """Several ids a sample: a list column, or a string with a ``separator``.

    ``weights`` names a column of as many numbers; ``max_length`` keeps the first ids.
    """

    type: Literal["multi_hot"] = "multi_hot"
    separator: str | None = None
    weights: str | None = None
    max_length: PositiveInt | None = None
    pooling: Literal["sum", "mean"] = "sum"


class SequenceFeature(IdFeature):
    """Ids in the order of time, oldest first; the last ``max_length`` are kept."""

    type: Literal["sequence"] = "sequence"
    separator: str | None = None
    weights: str | None = None
    max_length: PositiveInt | None = 50
    pooling: Literal["sum", "mean"] = "mean"


AnyFeature = Annotated[
    DenseFeature | SparseFeature | MultiHotFeature | SequenceFeature, Field(discriminator="type")
]
