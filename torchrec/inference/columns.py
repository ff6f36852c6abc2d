"""Whatever columns come in as: an Arrow table of those that are read."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from torchrec.datasets.transform import FeatureTransform
from torchrec.datasets.transform.columns import Source, require_columns


def to_table(data: object, transform: FeatureTransform) -> pa.Table:
    """Return the columns that a transform reads.

    Args:
        data: a mapping of columns, a list of rows, a data frame, an Arrow table or whatever gives an
            Arrow stream.
        transform: what reads the columns.

    Raises:
        TypeError: ``data`` is nothing of the kind.
        ValueError: a column is missing, in a row or in all, or cannot be read, or their lengths differ.
    """
    names = transform.input_columns
    if isinstance(data, pa.Table | pa.RecordBatch):
        require(data.schema.names, transform)
        return pa.table({name: data.column(name) for name in names})
    if isinstance(data, Mapping):
        require([str(name) for name in data], transform)
        return _with_times(_from_mapping({name: data[name] for name in names}), transform)
    if isinstance(data, list | tuple) and all(isinstance(row, Mapping) for row in data):
        return _with_times(_from_rows(data, transform), transform)
    if hasattr(data, "columns") and type(data).__module__.split(".")[0] == "pandas":
        return _with_times(_from_pandas(data, transform), transform)
    if hasattr(data, "__arrow_c_stream__"):
        table = pa.RecordBatchReader.from_stream(data).read_all()
        require(table.column_names, transform)
        return table.select(names)
    raise TypeError(
        "What is predicted for should be a dict of columns, a list of dicts, a DataFrame or an Arrow "
        f"table. Received {type(data).__name__}."
    )


def require(available: list[str], transform: FeatureTransform) -> None:
    """Refuse data without a column that a feature reads, naming both and the nearest there is."""
    feature_of = {
        column: name
        for name, feature in transform.features.items()
        for column in (feature.column or name, getattr(feature, "weights", None))
        if column is not None
    }
    require_columns(
        available, [Source(feature_of[column], column) for column in transform.input_columns]
    )


def _with_times(table: pa.Table, transform: FeatureTransform) -> pa.Table:
    """Return a table with text, as JSON has it, read as times where the training data had times."""
    for name, kind in transform.kinds.items():
        column = transform.features[name].column or name
        type = table.schema.field(column).type
        if kind == "times" and (pa.types.is_string(type) or pa.types.is_large_string(type)):
            position = table.schema.get_field_index(column)
            table = table.set_column(position, column, _times(column, table.column(column)))
    return table


def _times(name: str, text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the times that ISO 8601 text says, all of it with a zone or none."""
    try:
        return text.cast(pa.timestamp("us", "UTC"))
    except pa.ArrowInvalid:
        pass  # there may be no zone
    try:
        return text.cast(pa.timestamp("us"))
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"Column '{name}' should hold times, as in training: as such, or as text like "
            f"'2024-01-31T12:00:00Z', with a zone in every row or in none. Received: "
            f"{' '.join(str(error).split())}."
        ) from None


def _from_mapping(columns: dict[str, object]) -> pa.Table:
    if any(_is_single(value) for value in columns.values()):
        columns = {name: [value] for name, value in columns.items()}
    arrays = {name: _array(name, value) for name, value in columns.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Columns should have the same length. Received {lengths}.")
    return pa.table(arrays)


def _from_rows(
    rows: list[Mapping[Any, Any]] | tuple[Mapping[Any, Any], ...], transform: FeatureTransform
) -> pa.Table:
    names = transform.input_columns
    require([str(name) for row in rows[:1] for name in row] if rows else names, transform)
    for number, row in enumerate(rows):
        for name in names:
            if name not in row:
                raise ValueError(
                    f"Every row should have column '{name}', None where it is missing. Received row "
                    f"{number} without it: {', '.join(map(str, row))}."
                )
    return _from_mapping({name: [row[name] for row in rows] for name in names})


def _is_single(value: object) -> bool:
    """Say whether a value is that of one sample, and no column."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim == 0
    times = datetime.date | datetime.time | datetime.timedelta  # a datetime is a date, too
    return value is None or isinstance(value, str | bytes | times) or np.isscalar(value)


def _array(name: str, values: object) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray) and values.ndim > 1:
        values = list(values)
    elif not isinstance(values, np.ndarray):
        values = [_plain(value) for value in _sequence(name, values)]
        if any(isinstance(value, np.datetime64 | np.timedelta64) for value in values):
            values = _numpy_times(name, values)
    if isinstance(values, np.ndarray) and values.dtype.kind in "mM":
        values = _with_arrow_unit(values)
    return _converted(name, values)


def _numpy_times(name: str, values: list[Any]) -> np.ndarray[Any, Any]:
    kinds = {type(value) for value in values if isinstance(value, np.generic)}
    try:
        return np.array(values, "M8" if np.datetime64 in kinds else "m8")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Column '{name}' should hold values of one type. Received a mixture of times and "
            f"others: {error}."
        ) from None


def _with_arrow_unit(times: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return times of months, hours and the like in seconds: Arrow does not know such units."""
    unit, step = np.datetime_data(times.dtype)
    units = ("s", "ms", "us", "ns") if times.dtype.kind == "m" else ("D", "s", "ms", "us", "ns")
    return times if unit in units and step == 1 else times.astype(f"{times.dtype.kind}8[s]")


def _sequence(name: str, values: object) -> list[Any]:
    try:
        return list(values)  # type: ignore[call-overload, no-any-return]
    except TypeError:
        raise TypeError(
            f"Column '{name}' should be a list, an array or a single value. "
            f"Received {type(values).__name__}."
        ) from None


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return value[()]
    return value.tolist() if isinstance(value, Tensor) else value


def _converted(name: str, values: object) -> pa.Array:
    try:
        return _to_arrow(values)
    except (
        pa.ArrowInvalid,
        pa.ArrowTypeError,
        pa.ArrowNotImplementedError,
        OverflowError,
        TypeError,
    ) as error:
        raise ValueError(
            f"Column '{name}' should hold values of one type. Received what Arrow cannot take: "
            f"{' '.join(str(error).split())}."
        ) from None


def _to_arrow(values: Any) -> pa.Array:
    try:
        return pa.array(values, from_pandas=True)
    except OverflowError:  # integers of Python with 64 bits and no sign, as hashes may be
        lists = any(isinstance(value, list | tuple) for value in values)
        return pa.array(values, pa.list_(pa.uint64()) if lists else pa.uint64(), from_pandas=True)


def _from_pandas(frame: Any, transform: FeatureTransform) -> pa.Table:
    require([str(name) for name in frame.columns], transform)
    by_name = {str(name): name for name in frame.columns}
    return pa.table(
        {name: _converted(name, frame[by_name[name]]) for name in transform.input_columns}
    )
