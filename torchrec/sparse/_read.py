"""Parts of a ``KeyedJaggedTensor`` from Python lists and from tables.

A bag is the ids of one feature in one sample. In all that is read here a scalar is a bag of one id,
and None, a null or a missing value is an empty bag. pyarrow, polars and pandas are never imported:
a table brings its own library with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from torchrec.sparse._arrow import FLOATS, INTEGERS
from torchrec.sparse._columns import (
    KjtParts,
    assemble,
    checked_items,
    ids_from_lists,
    weights_from_lists,
)
from torchrec.sparse._tables import (
    arrow_columns,
    check_frame,
    choose_columns,
    column_from_arrow,
    column_from_pandas,
)


def kjt_parts_from_lists(
    mapping: Mapping[str, Sequence[Any]],
    weights: Mapping[str, Sequence[Any]] | None = None,
    dtype: torch.dtype = torch.int64,
) -> KjtParts:
    """Return the parts of a ``KeyedJaggedTensor`` from lists of ids.

    Args:
        mapping: for each key one bag a sample: a list, tuple or array of ids, one id, or None.
        weights: the weights of the ids, in the same shape. Default None.
        dtype: dtype of the values, ``torch.int64`` (default) or ``torch.int32``.

    Returns:
        The parts, in the order of ``mapping``.

    Raises:
        TypeError: an id is not an integer (a bool or a float is none), a weight not a number.
        ValueError: an id does not fit ``dtype``, keys differ in their number of samples, or the
            weights do not have the shape of the ids.

    Example:
        >>> parts = kjt_parts_from_lists({"product": [[1, 2, 1], [5]], "user": [[2, 3], None]})
        >>> parts.keys, parts.values, parts.lengths
        (['product', 'user'], tensor([1, 2, 1, 5, 2, 3]), tensor([3, 1, 2, 0]))
    """
    if dtype not in (torch.int64, torch.int32):
        raise ValueError(f"`dtype` should be torch.int64 or torch.int32. Received {dtype}.")
    ids = {key: ids_from_lists(key, bags, dtype) for key, bags in checked_items("data", mapping)}
    if weights is None:
        return assemble(ids, None)
    return assemble(
        ids, {key: weights_from_lists(key, bags) for key, bags in checked_items("weights", weights)}
    )


def kjt_parts_from_arrow(
    table: object,
    columns: Iterable[str] | None = None,
    weights: Mapping[str, str] | None = None,
) -> KjtParts:
    """Return the parts of a ``KeyedJaggedTensor`` from an Arrow table, each column read in place.

    One column of int32 or int64 ids in one chunk is not copied at all: the values are the table's
    own memory, kept alive for as long as they are used. (Arrow data is immutable: do not write to
    them.) Otherwise each column is copied once, to its place among the values. The values are int32
    if all columns are, and int64 otherwise.

    Args:
        table: anything with the Arrow PyCapsule interface that has named columns (a pyarrow
            ``Table``, ``RecordBatch``, ``RecordBatchReader``, a polars ``DataFrame``, ...), or a
            mapping of keys to Arrow arrays. A column holds integers or lists of integers (list,
            large_list, fixed_size_list). A null is an empty bag.
        columns: the columns to take, in this order. Default: all of the table that hold no weights.
        weights: for each of these columns, the column that holds its weights. Default None.

    Returns:
        The parts, with the names of the columns as keys.

    Raises:
        TypeError: a column holds something else than integers (weights: numbers).
        ValueError: a column does not exist, there is a null inside a bag, an id does not fit int64,
            or weights do not have the shape of their ids.

    Example:
        >>> import pyarrow as pa
        >>> table = pa.table({"product": [[1, 2, 1], [5]], "user": [7, None]})
        >>> kjt_parts_from_arrow(table).lengths
        tensor([3, 1, 1, 0])
    """
    chunks = arrow_columns(table)
    ids, of_weights = choose_columns(list(chunks), columns, weights)
    columns_of_ids = {key: column_from_arrow(key, chunks[key], INTEGERS) for key in ids}
    if of_weights is None:
        return assemble(columns_of_ids, None)
    numbers = INTEGERS | FLOATS
    return assemble(
        columns_of_ids,
        {key: column_from_arrow(of_weights[key], chunks[of_weights[key]], numbers) for key in ids},
    )


def kjt_parts_from_polars(
    df: Any,
    columns: Iterable[str] | None = None,
    weights: Mapping[str, str] | None = None,
) -> KjtParts:
    """Return the parts of a ``KeyedJaggedTensor`` from a polars ``DataFrame``.

    Memory is shared as in ``kjt_parts_from_arrow``, which also documents arguments and errors.

    Raises:
        TypeError: ``df`` is not a polars ``DataFrame`` (collect a ``LazyFrame`` first).

    Example:
        >>> import polars as pl
        >>> df = pl.DataFrame({"product": [[1, 2, 1], [5]], "user": [7, None]})
        >>> kjt_parts_from_polars(df, columns=["user"]).lengths
        tensor([1, 0])
    """
    check_frame(df, "polars")
    ids, of_weights = choose_columns(df.columns, columns, weights)
    # Only what is asked for: a string column would be converted to be exported.
    names = dict.fromkeys((*ids, *(of_weights or {}).values()))
    return kjt_parts_from_arrow(df.select(list(names)), ids, of_weights)


def kjt_parts_from_pandas(
    df: Any,
    columns: Iterable[str] | None = None,
    weights: Mapping[str, str] | None = None,
) -> KjtParts:
    """Return the parts of a ``KeyedJaggedTensor`` from a pandas ``DataFrame``.

    Columns of integers (nullable ones too) and of Arrow types are read as arrays; columns of Python
    lists as ``kjt_parts_from_lists`` reads them. The values are a copy: a ``DataFrame`` is mutable.

    Args:
        df: the ``DataFrame``. A missing value is an empty bag.
        columns: the columns to take, in this order. Default: all that hold no weights.
        weights: for each of these columns, the column that holds its weights. Default None.

    Returns:
        The parts, with the names of the columns as keys.

    Raises:
        TypeError: ``df`` is not a pandas ``DataFrame``, or a column holds something else than
            integers (weights: numbers), such as the floats that pandas makes of integers where some
            are missing: ``astype("Int64")`` makes integers of them.
        ValueError: as ``kjt_parts_from_arrow``.

    Example:
        >>> import pandas as pd
        >>> df = pd.DataFrame({"product": [[1, 2, 1], [5]], "user": [7, 8]})
        >>> kjt_parts_from_pandas(df).values
        tensor([1, 2, 1, 5, 7, 8])
    """
    check_frame(df, "pandas")
    ids, of_weights = choose_columns(list(df.columns), columns, weights)
    columns_of_ids = {key: column_from_pandas(df[key], weights=False) for key in ids}
    if of_weights is None:
        return assemble(columns_of_ids, None)
    return assemble(
        columns_of_ids, {key: column_from_pandas(df[of_weights[key]], weights=True) for key in ids}
    )
