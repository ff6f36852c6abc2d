"""Few rows of plain Python values, by column: what needs no Arrow table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from torchrec.datasets.transform import NotPlainError

MOST_ROWS = 64
"""Beyond this many rows an Arrow table is the quicker way."""

_SINGLE = {int, float, str, type(None)}


def plain_columns(data: object, names: list[str]) -> tuple[dict[str, Sequence[Any]], int]:
    """Return the values of columns and how many rows they have.

    Args:
        data: what is predicted for.
        names: the columns that are read.

    Raises:
        NotPlainError: data of another kind, without one of the columns, or of more than `MOST_ROWS`.
    """
    if type(data) is dict:
        values = _of_columns(data, names)
    elif isinstance(data, list | tuple) and len(data) <= MOST_ROWS:
        values = _of_rows(data, names)
    elif hasattr(data, "columns") and type(data).__module__.split(".")[0] == "pandas":
        values = _of_pandas(data, names)
    else:
        raise NotPlainError
    rows = {len(column) for column in values.values()}
    if len(rows) != 1:
        raise NotPlainError
    count = rows.pop()
    if not 0 < count <= MOST_ROWS:
        raise NotPlainError
    return values, count


def _of_columns(data: dict[Any, Any], names: list[str]) -> dict[str, Sequence[Any]]:
    try:
        values = {name: data[name] for name in names}
    except KeyError:
        raise NotPlainError from None
    if not _SINGLE.isdisjoint(map(type, values.values())):
        return {name: [_item(value)] for name, value in values.items()}
    return {name: _column(value) for name, value in values.items()}


def _of_rows(data: Sequence[Any], names: list[str]) -> dict[str, Sequence[Any]]:
    if not all(isinstance(row, Mapping) for row in data):
        raise NotPlainError
    try:
        return {name: [row[name] for row in data] for name in names}
    except KeyError:
        raise NotPlainError from None


def _of_pandas(frame: Any, names: list[str]) -> dict[str, Sequence[Any]]:
    if not 0 < len(frame) <= MOST_ROWS or not frame.columns.is_unique:
        raise NotPlainError
    try:
        return {name: _column(frame[name].to_numpy()) for name in names}
    except KeyError:
        raise NotPlainError from None


def _item(value: Any) -> Any:
    """Return the Python number of one of numpy."""
    return value.item() if isinstance(value, np.integer | np.floating) else value


def _column(values: Any) -> Sequence[Any]:
    if isinstance(values, list | tuple):
        return values
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iufO":
        return values.tolist()  # type: ignore[no-any-return]
    if isinstance(values, Tensor) and values.dim() == 1 and not values.is_complex():
        return values.tolist()
    raise NotPlainError
