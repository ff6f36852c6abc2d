"""Whatever columns come in as: an Arrow table of those that are read."""

from __future__ import annotations

import bisect
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from torchrec.datasets.features import DenseFeature, SparseFeature
from torchrec.datasets.transform import FeatureTransform
from torchrec.datasets.transform.columns import Kind, Source, kind_of, require_columns


def to_table(
    data: object, transform: FeatureTransform, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return the columns that a transform reads.

    Args:
        data: a mapping of columns, a list of rows, a data frame or a row of one, an Arrow table or
            whatever gives an Arrow stream.
        transform: what reads the columns.
        columns: some of these, where others come from elsewhere. Default: all.

    Raises:
        TypeError: ``data`` is nothing of the kind.
        ValueError: a column is missing, in a row or in all, or cannot be read, or their lengths differ.
    """
    names = transform.input_columns if columns is None else list(columns)
    if isinstance(data, pa.Table | pa.RecordBatch):
        require(data.schema.names, transform, names)
        return pa.table({name: data.column(name) for name in names})
    if isinstance(data, Mapping):
        require([str(name) for name in data], transform, names)
        columns = _from_mapping({name: data[name] for name in names}, transform)
        return _with_times(columns, transform)
    if isinstance(data, list | tuple) and all(isinstance(row, Mapping) for row in data):
        return _with_times(_from_rows(data, transform, names), transform)
    if type(data).__module__.split(".")[0] == "pandas" and hasattr(data, "index"):
        read = _from_pandas if hasattr(data, "columns") else _from_series
        return _with_times(read(data, transform, names), transform)
    stream = _stream(data)
    if stream is None:
        raise TypeError(
            "What is predicted for should be a dict of columns, a list of dicts, a DataFrame, a Series "
            f"that is a row of one, or an Arrow table. Received {type(data).__name__}."
        )
    table = stream.read_all()
    require(table.column_names, transform, names)
    return table.select(names)


def _stream(data: object) -> pa.RecordBatchReader | None:
    """Return the stream of tables that something gives; None if it gives none, or a single column."""
    if not hasattr(data, "__arrow_c_stream__"):
        return None
    try:
        return pa.RecordBatchReader.from_stream(data)
    except pa.ArrowInvalid:
        return None


def require(
    available: list[str], transform: FeatureTransform, columns: Sequence[str] | None = None
) -> None:
    """Refuse data without a column that a feature reads, naming both and the nearest there is.

    Args:
        available: the columns that there are.
        transform: has the features.
        columns: which have to be there. Default: all that the features read.

    Raises:
        ValueError: one is missing.
    """
    feature_of = {
        column: name
        for name, feature in transform.features.items()
        for column in (feature.column or name, getattr(feature, "weights", None))
        if column is not None
    }
    needed = transform.input_columns if columns is None else columns
    require_columns(available, [Source(feature_of[column], column) for column in needed])


def _with_times(table: pa.Table, transform: FeatureTransform) -> pa.Table:
    """Return a table with what JSON has for times, text and seconds, as times where the training data had such."""
    for name, kind in transform.kinds.items():
        column = transform.features[name].column or name
        if column not in table.column_names:
            continue
        position, values = table.schema.get_field_index(column), table.column(column)
        given = kind_of(values.type)
        if given == "strings" and kind in _TEXT_OF_TIMES:
            table = table.set_column(position, column, _times(column, values, kind))
        elif given in ("integers", "numbers") and kind == "zoned times":
            table = table.set_column(position, column, _moments(column, values))
    return table


# Text of ISO 8601, as examples of a kind.
_TEXT_OF_TIMES: dict[Kind, str] = {
    "zoned times": "'2024-01-31T12:00:00Z', with a zone in every row",
    "local times": "'2024-01-31T12:00:00', without a zone",
    "times": "'2024-01-31T12:00:00Z', with a zone in every row or in none",
}


def _times(name: str, text: pa.ChunkedArray, kind: Kind) -> pa.ChunkedArray:
    """Return the times that ISO 8601 text says, all of it with a zone or none; the zone may be a word for UTC."""
    text = pc.replace_substring_regex(text, " ?(UTC|GMT|\\+0000)$", "Z")
    if kind != "local times":
        try:
            return text.cast(pa.timestamp("us", "UTC"))
        except pa.ArrowInvalid as error:
            refused = error  # there may be no zone
    if kind != "zoned times":
        try:
            return text.cast(pa.timestamp("us"))
        except pa.ArrowInvalid as error:
            refused = error
    raise ValueError(
        f"Column '{name}' should hold {kind}, as in training: as such, or as text like "
        f"{_TEXT_OF_TIMES[kind]}. Received: {' '.join(str(refused).split())}."
    )


_LAST_SECOND = 1e11  # of the year 5138; milliseconds of 1973 are more


def _moments(name: str, numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the times that numbers say in seconds since 1970."""
    seconds = numbers.cast(pa.float64())
    largest = pc.max(pc.abs(seconds)).as_py() or 0.0
    if not largest <= _LAST_SECOND:
        raise ValueError(
            f"Column '{name}' should hold zoned times, as in training: as such, as text, or as seconds since 1970. "
            f"Received {largest:.17g}."
        )
    whole = pc.round(pc.multiply(seconds, 1e6)).cast(pa.int64())
    return whole.cast(pa.timestamp("us", "UTC"))


def _from_mapping(columns: dict[str, object], transform: FeatureTransform) -> pa.Table:
    if any(_is_single(value) for value in columns.values()):
        columns = {name: [value] for name, value in columns.items()}
    kinds = {
        feature.column or name: transform.kinds.get(name)
        for name, feature in transform.features.items()
        if isinstance(feature, DenseFeature | SparseFeature)
    }
    arrays = {name: _array(name, value, kinds.get(name)) for name, value in columns.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Columns should have the same length. Received {lengths}.")
    return pa.table(arrays)


def _from_rows(
    rows: list[Mapping[Any, Any]] | tuple[Mapping[Any, Any], ...],
    transform: FeatureTransform,
    names: Sequence[str],
) -> pa.Table:
    require(
        [str(name) for row in rows[:1] for name in row] if rows else list(names), transform, names
    )
    for number, row in enumerate(rows):
        for name in names:
            if name not in row:
                raise ValueError(
                    f"Every row should have column '{name}', None where it is missing. Received row "
                    f"{number} without it: {', '.join(map(str, row))}."
                )
    return _from_mapping({name: [row[name] for row in rows] for name in names}, transform)


def _is_single(value: object) -> bool:
    """Say whether a value is that of one sample, and no column."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim == 0
    times = datetime.date | datetime.time | datetime.timedelta  # a datetime is a date, too
    return value is None or isinstance(value, str | bytes | times) or np.isscalar(value)


def _array(name: str, values: object, kind: Kind | None) -> pa.Array | pa.ChunkedArray:
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
    return _converted(name, values, kind)


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


# Of values of features that have one a row, as Python has them.
_TYPES: dict[Kind, tuple[type, ...]] = {
    "integers": (int, np.integer, type(None)),
    "numbers": (int, float, np.number, type(None)),
    "strings": (str, type(None)),
}
_NOT_ARROW = (
    pa.ArrowInvalid,
    pa.ArrowTypeError,
    pa.ArrowNotImplementedError,
    OverflowError,
    TypeError,
)


def _converted(name: str, values: object, kind: Kind | None = None) -> pa.Array:
    try:
        return _to_arrow(values)
    except _NOT_ARROW as error:
        where = ""
        if isinstance(values, list):
            wanted = _TYPES.get(kind) if kind else None
            for row, value in enumerate(values):
                if wanted and not isinstance(value, wanted):
                    raise ValueError(
                        f"Column '{name}' should hold {kind}, as in training. Received {value!r} in row {row}."
                    ) from None
            where = f" in row {_first_odd(values)}"
        raise ValueError(
            f"Column '{name}' should hold values of one type. Received what Arrow cannot take{where}: "
            f"{' '.join(str(error).split())}."
        ) from None


def _first_odd(values: list[Any]) -> int:
    """Return the first row whose value does not go with those before it, in a column that Arrow does not take."""

    def is_refused(rows: int) -> bool:
        try:
            _to_arrow(values[:rows])
        except _NOT_ARROW:
            return True
        return False

    return bisect.bisect_left(range(1, len(values)), True, key=is_refused)


def _to_arrow(values: Any) -> pa.Array:
    try:
        return pa.array(values, from_pandas=True)
    except OverflowError:  # integers of Python with 64 bits and no sign, as hashes may be
        lists = any(isinstance(value, list | tuple) for value in values)
        return pa.array(values, pa.list_(pa.uint64()) if lists else pa.uint64(), from_pandas=True)


def _from_pandas(frame: Any, transform: FeatureTransform, names: Sequence[str]) -> pa.Table:
    require([str(name) for name in frame.columns], transform, names)
    by_name = {str(name): name for name in frame.columns}
    return pa.table({name: _converted(name, frame[by_name[name]]) for name in names})


def _from_series(row: Any, transform: FeatureTransform, names: Sequence[str]) -> pa.Table:
    """Return a row of a DataFrame, whose index has the names of the columns."""
    require([str(name) for name in row.index], transform, names)
    by_name = dict(zip(map(str, row.index), row, strict=True))
    return _from_mapping({name: [by_name[name]] for name in names}, transform)
