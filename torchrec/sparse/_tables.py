"""Columns of tables as columns of bags, without a Python loop over rows of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from torchrec.sparse._arrow import (
    FLOATS,
    INTEGERS,
    LIST_OFFSETS,
    LISTS,
    ArrowArray,
    read_arrow,
)
from torchrec.sparse._columns import (
    Column,
    check_key,
    checked_items,
    ids_from_lists,
    join,
    sample_of,
    weights_from_lists,
)


def check_frame(df: object, library: str) -> None:
    """Recognise a ``DataFrame`` without importing its library."""
    names = [(kind.__module__.split(".")[0], kind.__name__) for kind in type(df).__mro__]
    if (library, "DataFrame") not in names:
        raise TypeError(f"`df` should be a {library} DataFrame. Received {type(df).__name__}.")


def choose_columns(
    names: Sequence[Any], columns: Iterable[str] | None, weights: Mapping[str, str] | None
) -> tuple[list[str], dict[str, str] | None]:
    """Return the columns of ids, by default all that hold no weights, and the weights of each."""
    if isinstance(columns, str):
        raise TypeError(f"`columns` should be a list of names. Received {columns!r}.")
    of_weights = None if weights is None else dict(weights)
    used = set((of_weights or {}).values())
    ids = [name for name in names if name not in used] if columns is None else list(columns)
    for name in (*ids, *(of_weights or {}).values()):
        check_key(name)
        if names.count(name) != 1:
            raise ValueError(
                f"Columns should be named once in the table, {list(names)}. Received '{name}'."
            )
    if len(set(ids)) != len(ids):
        raise ValueError(f"`columns` should differ from one another. Received {ids}.")
    if of_weights is not None and set(of_weights) != set(ids):
        raise ValueError(
            f"`weights` should name a column for each of {ids}. Received {list(of_weights)}."
        )
    return ids, of_weights


def column_from_pandas(series: Any, weights: bool) -> Column:
    """Return a copy of the bags in a column of a ``DataFrame``."""
    name, dtype = series.name, series.dtype
    if hasattr(dtype, "pyarrow_dtype"):
        formats = INTEGERS | FLOATS if weights else INTEGERS
        column = column_from_arrow(name, read_arrow(series.array.__arrow_array__()), formats)
        return Column(column.lengths, [piece.clone() for piece in column.pieces])
    missing = series.isna().to_numpy(dtype=bool)
    if dtype.kind == "O":
        cells = series.to_numpy(dtype=object, copy=True)
        cells[missing] = None
        bags = cells.tolist()
        if weights:
            return weights_from_lists(name, bags)
        return ids_from_lists(name, bags, torch.int64)
    if dtype.kind not in ("iuf" if weights else "iu"):
        kind = "numbers" if weights else "integers"
        raise TypeError(f"Column '{name}' should hold {kind}, or lists of them. Received {dtype}.")
    numbers = series[~missing].to_numpy(dtype=f"{dtype.kind}{dtype.itemsize}", copy=True)
    return Column(torch.from_numpy(~missing).long(), [_fit(name, torch.from_numpy(numbers))])


def arrow_columns(table: object) -> dict[str, list[ArrowArray]]:
    """Return the chunks of every column."""
    if isinstance(table, Mapping):
        return {key: read_arrow(array) for key, array in checked_items("table", table)}
    columns: dict[str, list[ArrowArray]] = {}
    for batch in read_arrow(table):
        if batch.format != "+s" or batch.valid() is not None:
            raise TypeError(
                "`table` should have named columns; pass one array as {key: array}. "
                f"Received {type(table).__name__}."
            )
        named = batch.columns()
        if len(named) != len(batch.children):
            names = [child.name for child in batch.children]
            raise ValueError(
                f"The columns of `table` should have names of their own. Received {names}."
            )
        for name, column in named.items():
            columns.setdefault(name, []).append(column)
    return columns


def column_from_arrow(
    name: str, chunks: list[ArrowArray], formats: Mapping[str, torch.dtype]
) -> Column:
    """Return the bags in the chunks of a column, whose numbers have one of ``formats``."""
    lengths, pieces = [], []
    samples = 0
    for chunk in chunks:
        of_chunk, values = _chunk_from_arrow(name, chunk, formats, samples)
        lengths.append(of_chunk)
        pieces.append(values)
        samples += chunk.length
    return Column(join(lengths, torch.int64), pieces)


def _chunk_from_arrow(
    name: str, chunk: ArrowArray, formats: Mapping[str, torch.dtype], first_sample: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lengths of the bags and their values, not copied unless a null hides some."""
    if chunk.format == "n":
        return _full(chunk.length, 0), _full(0, 0)
    entries = chunk if chunk.format[:2] not in LISTS else chunk.children[0]
    if entries.format not in formats and (entries.format != "n" or entries.length):
        kind = "numbers" if "g" in formats else "integers"
        raise TypeError(
            f"Column '{name}' should hold {kind}, or lists of them. "
            f"Received the Arrow type {_describe(chunk)}."
        )
    values = entries.values(formats.get(entries.format, torch.int64))
    valid = chunk.valid()
    if entries is chunk:
        if valid is None:
            return _full(chunk.length, 1), _fit(name, values)
        return valid.long(), _fit(name, values[valid])
    return _lists_from_arrow(name, chunk, valid, values, first_sample)


def _lists_from_arrow(
    name: str,
    chunk: ArrowArray,
    valid: torch.Tensor | None,
    values: torch.Tensor,
    first_sample: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut the values of a list array to the bags that are there, and refuse a null in one."""
    start, stop, lengths = _bounds(chunk)
    values = values[start:stop]
    present = chunk.children[0].valid()
    present = None if present is None else present[start:stop]
    if valid is not None:
        if bool((lengths > 0).logical_and_(valid.logical_not()).any()):
            seen = valid.repeat_interleave(lengths)
            values, present = values[seen], None if present is None else present[seen]
        lengths = lengths * valid
    if present is not None and not bool(present.all()):
        at = int(present.logical_not().nonzero()[0])
        sample = first_sample + sample_of(lengths.tolist(), at)
        raise ValueError(
            f"The bags of column '{name}' should hold no null. Received one in sample {sample}."
        )
    return lengths, _fit(name, values)


def _bounds(chunk: ArrowArray) -> tuple[int, int, torch.Tensor]:
    """Return the first entry of a list array, the one behind the last, and the length of each bag."""
    if chunk.format in LIST_OFFSETS:
        offsets = chunk.values(LIST_OFFSETS[chunk.format], extra=1)
        # An array without bags may come without offsets.
        start, stop = (int(offsets[0]), int(offsets[-1])) if offsets.numel() else (0, 0)
        return start, stop, offsets.diff().long()
    length = int(chunk.format[3:])
    start, stop = chunk.offset * length, (chunk.offset + chunk.length) * length
    return start, stop, _full(chunk.length, length)


def _full(count: int, number: int) -> torch.Tensor:
    return torch.full((count,), number, dtype=torch.int64, device="cpu")


def _describe(array: ArrowArray) -> str:
    inner = f" of {_describe(array.children[0])}" if array.format[:2] in LISTS else ""
    return f"'{array.format}'{inner}"


def _fit(name: str, values: torch.Tensor) -> torch.Tensor:
    """Refuse unsigned ids that int64 cannot hold."""
    if values.dtype == torch.uint64:
        values = values.view(torch.int64)
        if bool((values < 0).any()):
            received = int(values[values < 0][0]) + 2**64
            raise ValueError(f"Column '{name}' should fit torch.int64. Received {received}.")
    return values
