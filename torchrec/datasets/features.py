"""What each column of a file is to a model: declarations that can be read from YAML.

A declaration says which column a feature reads and what becomes of its values; the transform
(`torchrec.datasets.transform`) does it, in training and in serving alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from torchrec.datasets.initial_weights import FeatureInit, Pretrained, TableInit
from torchrec.types import IdPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

IdSource = Literal["plain", "hash", "vocabulary", "managed"]
TextType = Literal["integer", "number", "string"]

MISPLACED = "misplaced_option"
"""The type of the validator's error about an option of another kind of ids."""

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DenseFeature(BaseModel):
    """A number. Nulls, NaN and infinities are missing values; they are counted and filled.

    Times count seconds since 1970. In this order:

    - ``log``: x becomes ``sign(x) log(1 + |x|)``.
    - ``fill``: a missing number becomes what ``fill`` would (a number in the unit of the column),
      or the mean of the training data.
    - ``standardise``: the mean of the training data is subtracted, and the rest divided by its
      standard deviation. A constant becomes 0. What is then too large for float32 is missing.

    With ``buckets`` the number becomes an id instead: that of its quantile in the training data,
    and ``buckets`` for missing. ``dim`` is the dimension of the table, which has a row for each, and
    ``init`` its initial weights.
    """

    model_config = _STRICT

    type: Literal["dense"] = "dense"
    column: str | None = None
    fill: float | Literal["mean"] = "mean"
    log: bool = False
    standardise: bool = True
    buckets: Annotated[int, Field(ge=2, le=65_536)] | None = None
    dim: PositiveInt | None = None
    init: TableInit | None = None

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.init is not None and self.buckets is None:
            raise PydanticCustomError(
                MISPLACED,
                "`{option}` should be left out unless there are `buckets`, which have a table. "
                "Received {value}.",
                {"option": "init", "value": self.init.rule},
            )
        return self


class VectorFeature(BaseModel):
    """Several numbers a sample, such as the vector of an image or a text, made by another model.

    A list column, or a string with a ``separator``, of ``size`` numbers in every row. The model takes
    each for a number of its own. A null, an empty list or an empty string is a vector of missing numbers,
    and an empty part of a string a missing number; ``fill`` is what a missing number becomes, a number or
    the mean of the training data at its place.
    ``standardise`` subtracts that mean at each place and divides by the standard deviation.
    """

    model_config = _STRICT

    type: Literal["vector"] = "vector"
    size: Annotated[int, Field(ge=1, le=65_536)]
    column: str | None = None
    separator: Annotated[str, Field(min_length=1)] | None = None
    fill: float | Literal["mean"] = "mean"
    standardise: bool = True


class IdFeature(BaseModel):
    """Ids, integers or strings, that choose rows of a table.

    ``ids`` says how an id finds its row: ``plain`` (integers in ``[0, rows)``), ``hash`` (any
    integer or string, hashed into ``rows``), ``vocabulary`` (the ids of the training data seen at
    least ``min_count`` times, the most frequent ``rows`` of them; all others share one further
    row) or ``managed`` (any id, a row each while it is warm; ``evict`` says who goes first, every
    ``evict_every`` batches).

    ``rows`` left out are decided by the training data: the largest id and one (plain), twice the
    number of distinct ids (hash), all ids (vocabulary), the number of distinct ids (managed);
    hash and managed take a million at most. ``dim`` is that of the model if left out, and ``init``,
    the rule for initial weights, is the model's ``table_init``. Features that name the same ``table``
    share it, and have to agree on all of this.

    ``init`` may be the vectors of another model, by id (``rule: pretrained``), of plain ids and those of
    a vocabulary.

    ``out_of_range`` says what becomes of plain ids outside the rows; no other kind has such.
    """

    model_config = _STRICT

    column: str | None = None
    ids: IdSource = "hash"
    rows: PositiveInt | None = None
    dim: PositiveInt | None = None
    init: FeatureInit | None = None
    table: str | None = None
    out_of_range: IdPolicy = IdPolicy.ERROR
    min_count: PositiveInt = 1
    evict: Literal["lfu", "lru", "distance_lfu"] = "lfu"
    evict_every: PositiveInt = 100

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        for name, (source, default) in _ONLY_FOR.items():
            value = getattr(self, name)
            if self.ids != source and value != default:
                raise PydanticCustomError(
                    MISPLACED,
                    "`{option}` should be left out unless `ids` is {source}. Received {value} with "
                    "ids {ids}.",
                    {
                        "option": name,
                        "source": source,
                        "value": getattr(value, "value", value),
                        "ids": self.ids,
                    },
                )
        if isinstance(self.init, Pretrained) and self.ids not in ("plain", "vocabulary"):
            raise PydanticCustomError(
                MISPLACED,
                "`{option}` should have another rule than pretrained unless `ids` is plain or vocabulary, "
                "where an id has a row of its own. Received pretrained with ids {value}.",
                {"option": "init", "value": self.ids},
            )
        return self


# Options that mean something for one kind of ids only, and their defaults.
_ONLY_FOR: dict[str, tuple[IdSource, object]] = {
    "min_count": ("vocabulary", 1),
    "evict": ("managed", "lfu"),
    "evict_every": ("managed", 100),
    "out_of_range": ("plain", IdPolicy.ERROR),
}


class SparseFeature(IdFeature):
    """One id a sample; a null is an empty bag."""

    type: Literal["sparse"] = "sparse"


Bag = TypeVar("Bag", bound="MultiHotFeature | SequenceFeature")


def _with_one_kind_of_weights(bag: Bag) -> Bag:
    """Refuse weights in a column of their own and behind the ids."""
    if bag.weights is not None and bag.weight_separator is not None:
        raise PydanticCustomError(
            MISPLACED,
            "`{option}` should be left out where `weights` names a column. Received {value}.",
            {"option": "weight_separator", "value": bag.weight_separator},
        )
    return bag


class MultiHotFeature(IdFeature):
    """Several ids a sample: a list column, or a string with a ``separator``.

    Null is an empty bag, and a null in a list is left out, as is an empty part of a string. Lists in a
    list are one after another in one bag.
    ``weights`` names a column of as many numbers, or ``weight_separator`` is what stands between an id
    and its weight, as in ``"7:0.5|9:2"``; a weight that is missing or infinite counts as 1.
    ``max_length`` keeps the first ids. Plain ids of a string are parsed as integers.
    """

    type: Literal["multi_hot"] = "multi_hot"
    separator: Annotated[str, Field(min_length=1)] | None = None
    weights: str | None = None
    weight_separator: Annotated[str, Field(min_length=1)] | None = None
    max_length: PositiveInt | None = None
    pooling: Literal["sum", "mean"] = "sum"

    _check_weights = model_validator(mode="after")(_with_one_kind_of_weights)


class SequenceFeature(IdFeature):
    """Ids in the order of time, oldest first; the last ``max_length`` are kept.

    Otherwise as `MultiHotFeature`.
    """

    type: Literal["sequence"] = "sequence"
    separator: Annotated[str, Field(min_length=1)] | None = None
    weights: str | None = None
    weight_separator: Annotated[str, Field(min_length=1)] | None = None
    max_length: PositiveInt | None = 50
    pooling: Literal["sum", "mean"] = "mean"

    _check_weights = model_validator(mode="after")(_with_one_kind_of_weights)


AnyFeature = Annotated[
    DenseFeature | VectorFeature | SparseFeature | MultiHotFeature | SequenceFeature,
    Field(discriminator="type"),
]


def text_columns(features: Mapping[str, AnyFeature]) -> list[str]:
    """Return the columns that hold strings to be split, whatever their values look like.

    A reader of text files has to be told: where every list has one part, ``"7"`` looks like a number.

    Args:
        features: declarations by name.

    Example:
        >>> text_columns({"user": SparseFeature(), "genres": MultiHotFeature(separator="|")})
        ['genres']
    """
    found: dict[str, None] = {}
    for name, feature in features.items():
        if getattr(feature, "separator", None) is not None:
            weights = getattr(feature, "weights", None)
            found |= dict.fromkeys(filter(None, [feature.column or name, weights]))
    return list(found)


def number_columns(features: Mapping[str, AnyFeature]) -> dict[str, TextType]:
    """Return the columns that features read numbers from, whatever their first values look like.

    A dense feature reads numbers, also where the first are whole; plain ids are integers, also where
    they have leading zeros. Columns of `text_columns` are strings all the same.

    Args:
        features: declarations by name.

    Example:
        >>> number_columns({"price": DenseFeature(), "user": SparseFeature(ids="plain", rows=9)})
        {'price': 'number', 'user': 'integer'}
    """
    found: dict[str, TextType] = {}
    for name, feature in features.items():
        column = feature.column or name
        if isinstance(feature, DenseFeature):
            found[column] = "number"
        elif isinstance(feature, SparseFeature) and feature.ids == "plain":
            found.setdefault(column, "integer")
    return found
