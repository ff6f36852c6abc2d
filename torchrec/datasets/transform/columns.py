"""Arrow columns as numpy arrays: without copies where the layout allows, never row by row."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
import torch

from torchrec.checks import nearest
from torchrec.datasets.transform.list_text import BRACKETS, split_brackets
from torchrec.ops.hashing import hash_strings

Array = np.ndarray[Any, np.dtype[Any]]
Kind = Literal[
    "integers", "numbers", "strings", "zoned times", "local times", "durations", "times of day", "times", "nulls",
    "other",
]  # fmt: skip
TIMES: frozenset[Kind] = frozenset(
    ["zoned times", "local times", "durations", "times of day", "times"]
)
"""Kinds that count as seconds. ``times`` is any of them, where an earlier version fitted the model."""


@dataclass(frozen=True)
class Source:
    """A column and the feature that reads it: what error messages name.

    Attributes:
        feature: the feature.
        column: the column.
    """

    feature: str
    column: str

    def __str__(self) -> str:
        return f"Column '{self.column}' of feature '{self.feature}'"


def require_columns(available: Iterable[str], sources: Iterable[Source]) -> None:
    """Refuse a table that lacks a column, naming the nearest that it has."""
    names = list(available)
    for source in sources:
        found = names.count(source.column)
        if found == 1:
            continue
        if found > 1:
            raise ValueError(f"{source} should be in the table once. Received {found} of them.")
        near = nearest(source.column, names)
        hint = "" if near is None else f" The nearest is '{near}'."
        raise ValueError(
            f"{source} should be in the table. Received the columns {', '.join(names)}.{hint}"
        )


def is_list(type: pa.DataType) -> bool:
    """Say whether each entry of such a column is a list."""
    return bool(
        pt.is_list(type)
        or pt.is_large_list(type)
        or pt.is_fixed_size_list(type)
        or pt.is_list_view(type)
        or pt.is_large_list_view(type)
    )


def innermost(type: pa.DataType) -> pa.DataType:
    """Return the type of what lists, or lists of lists, hold."""
    while is_list(type):
        type = type.value_type
    return type


def kind_of(type: pa.DataType) -> Kind:
    """Return what a value of such a column is: the part of its type that models depend on."""
    if pt.is_dictionary(type):
        return kind_of(type.value_type)
    if pt.is_integer(type) or pt.is_boolean(type):
        return "integers"
    if pt.is_decimal(type):
        return "integers" if type.scale == 0 else "numbers"
    if pt.is_floating(type):
        return "numbers"
    if _is_text(type) or pt.is_string_view(type) or pt.is_binary_view(type):
        return "strings"
    if pt.is_timestamp(type) or pt.is_date(type):
        return "zoned times" if getattr(type, "tz", None) else "local times"
    if pt.is_duration(type):
        return "durations"
    if pt.is_time(type):
        return "times of day"
    return "nulls" if pt.is_null(type) else "other"


def fits(kind: Kind, trained: Kind) -> bool:
    """Say whether values of a kind, or none, are those that a model was trained on."""
    return kind in (trained, "nulls") or (trained == "times" and kind in TIMES)


def stored(type: pa.DataType) -> pa.DataType:
    """Return the type of the values of a column, dictionary or not: what messages name."""
    return type.value_type if pt.is_dictionary(type) else type


def _is_text(type: pa.DataType) -> bool:
    return bool(
        pt.is_string(type)
        or pt.is_large_string(type)
        or pt.is_binary(type)
        or pt.is_large_binary(type)
    )


def _is_wide(type: pa.DataType) -> bool:
    return bool(pt.is_large_string(type) or pt.is_large_binary(type))


def chunks_of(table: pa.Table, name: str) -> list[pa.Array]:
    """Return the pieces of a column; one piece where there are many small ones."""
    column = table.column(name)
    if column.num_chunks > 1 and len(column) < 4096 * column.num_chunks:
        return [whole(column)]
    return list(column.chunks)


def whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def valid_of(array: pa.Array) -> Array | None:
    """Return which entries are not null, bool; None if all are."""
    if array.null_count == 0:
        return None
    bits = None if pt.is_null(array.type) else array.buffers()[0]
    if bits is None:
        return np.zeros(len(array), np.bool_)
    first, last = array.offset, array.offset + len(array)
    packed = np.frombuffer(bits, np.uint8)[first // 8 : (last + 7) // 8]
    flags = np.unpackbits(packed, bitorder="little")
    return flags[first % 8 :][: len(array)].view(np.bool_)


# Numbers beyond this are infinite to a model, which computes in float32.
LARGEST = float(np.finfo(np.float32).max)


def are_finite(values: Array) -> bool:
    """Say whether no number is NaN, nor infinite to a model."""
    # The extremes alone are much quicker to find than a flag for each number.
    return not len(values) or max(values.max(), -values.min()) <= LARGEST


@dataclass
class Numbers:
    """Numbers of consecutive samples.

    Attributes:
        values: float64, of this object alone; 0 where missing.
        missing: positions of missing numbers, rising; None if there are none.
        infinite: how many of these are infinite, rather than null or NaN.
    """

    values: Array
    missing: Array | None = None
    infinite: int = 0

    def present(self) -> Array:
        """Return the numbers that are not missing."""
        return self.values if self.missing is None else np.delete(self.values, self.missing)


def read_numbers(array: pa.Array) -> Numbers:
    """Return numbers; times as seconds."""
    if pt.is_dictionary(array.type):
        array = array.dictionary_decode()
    type = array.type
    if pt.is_null(type):
        return Numbers(np.zeros(len(array)), np.arange(len(array)))
    if pt.is_temporal(type):
        array = _seconds(array)
    elif pt.is_boolean(type):
        array = array.cast(pa.uint8())
    elif pt.is_decimal(type):
        array = array.cast(pa.float64())
    stored, valid = _fixed_width(array)
    values = stored.astype(np.float64)
    if pt.is_temporal(type):
        values /= _UNITS_A_SECOND[_unit(type)]
    floating = pt.is_floating(array.type)
    if valid is None and not (floating and not are_finite(values)):
        return Numbers(values)
    if floating or valid is None:
        return _without_gaps(values, valid)
    missing = np.flatnonzero(~valid)
    values[missing] = 0
    return Numbers(values, missing)


def _without_gaps(values: Array, valid: Array | None) -> Numbers:
    finite = np.abs(values) <= LARGEST
    if valid is not None:
        finite &= valid
    missing = np.flatnonzero(~finite)
    gaps = values[missing]
    infinite = np.abs(gaps) > LARGEST
    if valid is not None:
        infinite &= valid[missing]
    values[missing] = 0
    return Numbers(values, missing, int(np.count_nonzero(infinite)))


_UNITS_A_SECOND = {"days": 1 / 86_400, "s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


def _unit(type: pa.DataType) -> str:
    if pt.is_date32(type):
        return "days"
    return "ms" if pt.is_date64(type) else str(type.unit)


def _seconds(array: pa.Array) -> pa.Array:
    """Return the integers behind times: they count units of `_unit`."""
    narrow = pt.is_date32(array.type) or pt.is_time32(array.type)
    return array.cast(pa.int32()) if narrow else array.cast(pa.int64())


def read_ids(array: pa.Array, source: Source) -> tuple[Array, Array | None]:
    """Return ids, strings hashed to int64, and which entries are not null (None: all).

    The ids are of any integer type, and may share the memory of the array.
    """
    type = array.type
    if pt.is_integer(type):
        return _fixed_width(array)
    if pt.is_dictionary(type):
        return _dictionary_ids(array, source)
    if pt.is_null(type):
        return np.zeros(len(array), np.int64), valid_of(array)
    if pt.is_string_view(type) or pt.is_binary_view(type):
        array = array.cast(pa.large_binary())
    elif pt.is_boolean(type):
        array = array.cast(pa.uint8())
    elif pt.is_decimal(type):
        array = _whole_decimals(array, source)
    elif pt.is_floating(type):
        return _whole_numbers(array, source)
    if _is_text(array.type):
        return _hashed(array), valid_of(array)
    return _fixed_width(array)


def _dictionary_ids(array: pa.DictionaryArray, source: Source) -> tuple[Array, Array | None]:
    """Convert the dictionary's entries, once each, and look the samples up in them."""
    if len(array) < len(array.dictionary):  # a small part of a large table
        return read_ids(array.dictionary_decode(), source)
    entries, entries_valid = read_ids(array.dictionary, source)
    index, valid = _fixed_width(array.indices)
    if valid is not None:
        index = np.where(valid, index, 0)
    if not len(entries):  # all null
        return np.zeros(len(array), np.int64), valid
    if entries_valid is not None:
        found = entries_valid[index]
        valid = found if valid is None else valid & found
    return entries[index], valid


def _whole_numbers(array: pa.Array, source: Source) -> tuple[Array, Array | None]:
    """Read ids that some tool turned to floating point, as pandas does where there are nulls."""
    stored, present = _fixed_width(array)
    values = stored.astype(np.float64)
    valid = ~np.isnan(values)
    if present is not None:
        valid &= present
    values[~valid] = 0
    wrong = (values != np.trunc(values)) | (np.abs(values) > 2**53)
    if wrong.any():
        raise ValueError(
            f"{source} should hold whole numbers or strings, as ids are. "
            f"Received {values[wrong][0]:g}; a measured number is a dense feature."
        )
    return values.astype(np.int64), None if valid.all() else valid


def _whole_decimals(array: pa.Array, source: Source) -> pa.Array:
    try:
        return array.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{source} should hold whole numbers of 64 bits or strings, as ids are. Received "
            f"{array.type}: {error}."
        ) from None


def _fixed_width(array: pa.Array) -> tuple[Array, Array | None]:
    """Return integers or floats in the memory of the array, and which are not null (None: all)."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    buffer = array.buffers()[1]
    valid = valid_of(array) if array.null_count else None
    if buffer is None or not len(array):
        return np.zeros(len(array), dtype), valid
    return np.frombuffer(buffer, dtype, len(array), array.offset * dtype.itemsize), valid


def _hashed(array: pa.Array) -> Array:
    if not len(array):
        return np.zeros(0, np.int64)
    _, ends, data = array.buffers()
    width = np.dtype(np.int64 if _is_wide(array.type) else np.int32)
    bounds = np.frombuffer(ends, width, len(array) + 1, array.offset * width.itemsize)
    text = np.frombuffer(b"" if data is None else data, np.uint8)
    hashes: Array = hash_strings(tensor_of(text), tensor_of(bounds)).numpy()
    return hashes


def tensor_of(array: Array) -> torch.Tensor:
    """Return an array as a tensor in the same memory, which is only to be read."""
    if array.flags.writeable or not array.size:
        return torch.from_numpy(array if array.size else array.copy())
    # PyTorch has no tensors that cannot be written to, and warns of what it is given.
    memory = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    memory.owner = array  # type: ignore[attr-defined]
    return torch.frombuffer(memory, dtype=_TORCH[array.dtype])


_TORCH = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
}


@dataclass
class Lists:
    """Lists as ranges of one array of values, in any order, maybe with gaps.

    Attributes:
        starts: where each list starts, int64.
        lengths: how long it is, int64; 0 for null.
        values: the values of all lists.
        missing: number of lists that are null.
    """

    starts: Array
    lengths: Array
    values: pa.Array
    missing: int


def read_lists(array: pa.Array, separator: str | None) -> Lists:
    """Return the lists of a column; a string with a separator is the list of its parts.

    `BRACKETS` as the separator means lists in brackets. Of lists in lists the values are one after another.
    """
    lists = _outer_lists(array, separator)
    while is_list(lists.values.type):
        lists = _joined(lists)
    return lists


def _joined(lists: Lists) -> Lists:
    """Return lists of lists as lists of what these hold."""
    inner = _outer_lists(lists.values, None)
    ends = np.concatenate([[0], np.cumsum(inner.lengths)])
    starts = ends[lists.starts]
    values = inner.values
    # To take values of lists 190 deep takes a second, and nearly all lie one after another as it is.
    if not (np.array_equal(inner.starts, ends[:-1]) and ends[-1] == len(values)):
        values = values.take(pa.array(positions(inner.starts, inner.lengths)))
    return Lists(starts, ends[lists.starts + lists.lengths] - starts, values, lists.missing)


def positions(starts: Array, lengths: Array) -> Array:
    """Return the positions of all values of lists, list after list."""
    shift = starts - (np.cumsum(lengths) - lengths)
    return np.repeat(shift, lengths) + np.arange(int(lengths.sum()))


def _outer_lists(array: pa.Array, separator: str | None) -> Lists:
    type = array.type
    if pt.is_null(type):
        nothing = np.zeros(len(array), np.int64)
        return Lists(nothing, nothing, pa.nulls(0), len(array))
    if separator == BRACKETS and not is_list(type):
        array = split_brackets(_plain_text(array))
    elif separator is not None and not is_list(type):
        array = pc.split_pattern(_plain_text(array), separator)
    elif pt.is_list_view(type) or pt.is_large_list_view(type):
        return _viewed_lists(array)
    valid = valid_of(array)
    if pt.is_fixed_size_list(array.type):
        size = array.type.list_size
        bounds = np.arange(array.offset, array.offset + len(array) + 1, dtype=np.int64) * size
    else:
        wide = pt.is_large_list(array.type)
        bounds = _bounds(array, np.dtype(np.int64 if wide else np.int32))
    first, last = (int(bounds[0]), int(bounds[-1])) if len(bounds) else (0, 0)
    values = array.values.slice(first, last - first)
    lengths = np.diff(bounds)
    if valid is not None:
        lengths[~valid] = 0
    return Lists(bounds[:-1] - first, lengths, values, 0 if valid is None else array.null_count)


def _viewed_lists(array: pa.Array) -> Lists:
    """Return lists that may lie anywhere among their values, now one after another."""
    lengths = array.sizes.to_numpy().astype(np.int64)
    valid = valid_of(array)
    if valid is not None:
        lengths[~valid] = 0
    return Lists(np.cumsum(lengths) - lengths, lengths, array.flatten(), array.null_count)


def _bounds(array: pa.Array, dtype: np.dtype[Any]) -> Array:
    if not len(array):
        return np.zeros(1, np.int64)
    offset = array.offset * dtype.itemsize
    return np.frombuffer(array.buffers()[1], dtype, len(array) + 1, offset).astype(np.int64)


def _plain_text(array: pa.Array) -> pa.Array:
    """Return strings in a layout that can be split, whatever bytes they hold."""
    if pt.is_dictionary(array.type):
        array = array.dictionary_decode()
    wide = pt.is_string_view(array.type) or pt.is_binary_view(array.type)
    return array.cast(pa.large_binary()) if wide else array
