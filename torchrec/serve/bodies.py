"""What requests carry: JSON and Arrow, of bounded size, however hostile; and what answers carry."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pydantic_core import from_json, to_json

from torchrec.serve.candidates import Wish
from torchrec.serve.failures import RefusedError
from torchrec.serve.limits import Limits

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
PROBLEM = "application/problem+json"  # RFC 9457

_WISHES = {"users": list, "k": int, "candidates": list, "seen": list, "task": str}


def rows_of_json(body: bytes, limits: Limits) -> list[dict[str, Any]]:
    """Return the rows of a request for predictions.

    Args:
        body: ``{"rows": [{"user": "ann", "price": 2.5}, ...]}``.
        limits: of rows.

    Raises:
        RefusedError: it is something else (400), or has too many rows (413).

    Example:
        >>> rows_of_json(b'{"rows": [{"user": "ann", "price": null}]}', Limits())
        [{'user': 'ann', 'price': None}]
    """
    content = _object(body)
    rows = content.pop("rows", None)
    if content or not isinstance(rows, list):
        raise RefusedError(
            400,
            'The body should be {"rows": [...]}, with an object of columns for each row. Received '
            f"{_kinds({**content, **({} if rows is None else {'rows': rows})})}.",
        )
    return _checked_rows(rows, "rows", limits)


def wish_of_json(body: bytes, limits: Limits) -> Wish:
    """Return what a request for recommendations asks.

    Args:
        body: an object with the fields of `torchrec.serve.candidates.Wish`.
        limits: of rows.

    Raises:
        RefusedError: it is something else (400), or has too many rows (413).
    """
    content = {name: value for name, value in _object(body).items() if value is not None}
    for name, value in content.items():
        if name not in _WISHES:
            raise RefusedError(
                400, f"The body should have {', '.join(_WISHES)}. Received '{name[:80]}'."
            )
        if isinstance(value, bool) or not isinstance(value, _WISHES[name]):
            raise RefusedError(
                400, f"`{name}` should be {_JSON_NAMES[_WISHES[name]]}. Received {_kind(value)}."
            )
    if "users" not in content:
        raise RefusedError(400, "The body should have `users`, a list of rows. Received none.")
    for name in ("users", "candidates"):
        _checked_rows(content.get(name, []), name, limits)
    for number, own in enumerate(content.get("seen", [])):
        if not isinstance(own, list):
            raise RefusedError(
                400, f"`seen` should be a list of lists of keys. Received {_kind(own)} at {number}."
            )
    return Wish(**content)


_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _kind(value: object) -> str:
    return _JSON_NAMES[type(value)]


def _kinds(content: dict[str, Any]) -> str:
    named = [f"'{name[:40]}' ({_kind(value)})" for name, value in list(content.items())[:8]]
    return ", ".join(named) or "nothing in it"


def _object(body: bytes) -> dict[str, Any]:
    try:
        content = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(400, f"The body should be JSON. Received other text: {error}.") from None
    if not isinstance(content, dict):
        raise RefusedError(400, f"The body should be a JSON object. Received {_kind(content)}.")
    return content


def _checked_rows(rows: list[Any], what: str, limits: Limits) -> list[dict[str, Any]]:
    _check_size(len(rows), limits)
    for number, row in enumerate(rows):
        if type(row) is not dict:
            raise RefusedError(
                400,
                f"`{what}` should be objects of columns. Received {_kind(row)} in row {number}.",
            )
    return rows


def _check_size(rows: int, limits: Limits) -> None:
    if rows > limits.rows:
        raise RefusedError(
            413, f"A request should have at most {limits.rows:,} rows. Received {rows:,}."
        )


def table_of_arrow(body: bytes, limits: Limits) -> pa.Table:
    """Return the table of an Arrow IPC stream, whole and checked.

    Args:
        body: a stream of record batches that are not compressed: what they unpack to has no bound.
        limits: of rows.

    Raises:
        RefusedError: it is something else (400), or has too many rows (413).

    Example:
        >>> sink = pa.BufferOutputStream()
        >>> with pa.ipc.new_stream(sink, pa.schema([("price", pa.float64())])) as writer:
        ...     writer.write_batch(pa.record_batch({"price": [2.5]}))
        >>> table_of_arrow(sink.getvalue().to_pybytes(), Limits()).to_pydict()
        {'price': [2.5]}
    """
    try:
        _refuse_compressed(body)
        with pa.ipc.open_stream(pa.BufferReader(body)) as reader:
            batches, rows = [], 0
            for batch in reader:
                rows += batch.num_rows
                _check_size(rows, limits)
                batch.validate(full=True)  # offsets that lead elsewhere would be read
                batches.append(batch)
            return pa.Table.from_batches(batches, reader.schema)
    except (pa.ArrowException, ValueError, OSError, OverflowError, MemoryError) as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise RefusedError(
            400, f"The body should be a stream of Arrow IPC. Received another: {text}."
        ) from None


def _refuse_compressed(body: bytes) -> None:
    """Refuse batches that are packed: some kilobytes may unpack to gigabytes."""
    for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(body)):
        if message.type in ("record batch", "dictionary") and _is_compressed(message.metadata):
            raise ValueError("its batches are compressed, and should not be")


def _is_compressed(metadata: pa.Buffer) -> bool:
    """Say whether a message's head, a flatbuffer, has the field `compression` of a record batch."""
    head = memoryview(metadata)
    message = _at(head, 0, 4)
    header = _field(head, message, 2)
    if header is None:
        return False
    table = header + _at(head, header, 4)
    if (
        head[_required(_field(head, message, 1))] == 2
    ):  # a dictionary: its batch is the second field
        batch = _required(_field(head, table, 1))
        table = batch + _at(head, batch, 4)
    return _field(head, table, 3) is not None


def _field(head: memoryview, table: int, number: int) -> int | None:
    """Return where a field of a flatbuffer's table lies; None where it is left out."""
    columns = table - int.from_bytes(head[table : table + 4], "little", signed=True)
    size, place = _at(head, columns, 2), 4 + 2 * number
    if columns < 0 or place + 2 > size:
        return None
    offset = _at(head, columns + place, 2)
    return table + offset if offset else None


def _at(head: memoryview, place: int, size: int) -> int:
    found = bytes(head[place : place + size])
    if place < 0 or len(found) < size:
        raise ValueError("its head is damaged")
    return int.from_bytes(found, "little")


def _required(place: int | None) -> int:
    if place is None:
        raise ValueError("its head is damaged")
    return place


def arrow_of(table: pa.Table) -> bytes:
    """Return a table as a stream of Arrow IPC."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(memoryview(sink.getvalue()))


def json_of(content: object) -> bytes:
    """Return what an answer says as JSON. All its numbers are finite: a predictor refuses others."""
    return to_json(content)
