"""Arrow arrays as tensors that share their memory, without any Arrow library.

Whatever speaks the Arrow PyCapsule interface (pyarrow, polars, pandas, DuckDB, ...) hands out C
structs: see https://arrow.apache.org/docs/format/CDataInterface.html and CStreamInterface.html. The
tensors keep the producer's memory alive: each holds the owner of the struct that it was read from.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch

# The types that are read, as the C data interface writes them. "+w:3" is a list of three.
LISTS = ("+l", "+L", "+w")
LIST_OFFSETS = {"+l": torch.int32, "+L": torch.int64}
INTEGERS = {
    "c": torch.int8,
    "C": torch.uint8,
    "s": torch.int16,
    "S": torch.uint16,
    "i": torch.int32,
    "I": torch.uint32,
    "l": torch.int64,
    "L": torch.uint64,
}
FLOATS = {"e": torch.float16, "f": torch.float32, "g": torch.float64}


class _Schema(ctypes.Structure):
    pass


class _Array(ctypes.Structure):
    pass


class _Stream(ctypes.Structure):
    pass


_Schema._fields_ = [
    ("format", c_char_p),
    ("name", c_char_p),
    ("metadata", c_void_p),
    ("flags", c_int64),
    ("n_children", c_int64),
    ("children", POINTER(POINTER(_Schema))),
    ("dictionary", POINTER(_Schema)),
    ("release", ctypes.CFUNCTYPE(None, POINTER(_Schema))),
    ("private_data", c_void_p),
]
_Array._fields_ = [
    ("length", c_int64),
    ("null_count", c_int64),
    ("offset", c_int64),
    ("n_buffers", c_int64),
    ("n_children", c_int64),
    ("buffers", POINTER(c_void_p)),
    ("children", POINTER(POINTER(_Array))),
    ("dictionary", POINTER(_Array)),
    ("release", ctypes.CFUNCTYPE(None, POINTER(_Array))),
    ("private_data", c_void_p),
]
_Stream._fields_ = [
    ("get_schema", ctypes.CFUNCTYPE(c_int, POINTER(_Stream), POINTER(_Schema))),
    ("get_next", ctypes.CFUNCTYPE(c_int, POINTER(_Stream), POINTER(_Array))),
    ("get_last_error", ctypes.CFUNCTYPE(c_char_p, POINTER(_Stream))),
    ("release", ctypes.CFUNCTYPE(None, POINTER(_Stream))),
    ("private_data", c_void_p),
]


class _Owned:
    """A struct that a stream moved to us, and that we have to release."""

    def __init__(self, struct: Any) -> None:
        self.struct = struct

    def __del__(self) -> None:
        if self.struct.release:
            self.struct.release(byref(self.struct))


@dataclass(frozen=True)
class ArrowArray:
    """One array: its type, the range of it that counts, and where its buffers are.

    Attributes:
        format: the type, as the C data interface writes it ("l" for int64, "+l" for a list).
        name: name of the column, "" where it has none.
        length: number of entries.
        offset: position of the first entry in the buffers.
        children: the columns of a struct, the values of a list.
        buffers: addresses; the first is that of the validity bits, 0 if no entry is null.
        owner: what keeps the memory alive.
    """

    format: str
    name: str
    length: int
    offset: int
    children: tuple[ArrowArray, ...]
    buffers: tuple[int, ...]
    owner: object

    def values(self, dtype: torch.dtype, extra: int = 0) -> torch.Tensor:
        """Return the entries and ``extra`` ones behind them, in the memory of the array."""
        start = self.offset
        return self._buffer(1, dtype, start + self.length + extra)[start:]

    def valid(self) -> torch.Tensor | None:
        """Return which entries are not null, bool of shape ``[length]``; None if all are."""
        if not self.buffers or not self.buffers[0]:
            return None
        last = self.offset + self.length
        bits = self._buffer(0, torch.uint8, (last + 7) // 8)
        flags = (bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device="cpu")) & 1
        valid = flags.flatten()[self.offset : last].bool()
        return None if bool(valid.all()) else valid

    def columns(self) -> dict[str, ArrowArray]:
        """Return the columns of a struct array, cut to the range of the struct, by name."""
        return {
            child.name: ArrowArray(
                child.format,
                child.name,
                self.length,
                child.offset + self.offset,
                child.children,
                child.buffers,
                child.owner,
            )
            for child in self.children
        }

    def _buffer(self, index: int, dtype: torch.dtype, count: int) -> torch.Tensor:
        address = self.buffers[index] if index < len(self.buffers) else 0
        if not address or not count:
            return torch.empty(0, dtype=dtype, device="cpu")
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        memory.owner = self.owner  # type: ignore[attr-defined]
        return torch.frombuffer(memory, dtype=dtype)


def read_arrow(source: object) -> list[ArrowArray]:
    """Return the chunks of an Arrow object, at least one, without copying their buffers.

    Args:
        source: an object with ``__arrow_c_stream__`` or ``__arrow_c_array__``.

    Raises:
        TypeError: it has neither.
        ValueError: its producer reports an error.
    """
    if hasattr(source, "__arrow_c_array__"):
        schema_capsule, array_capsule = source.__arrow_c_array__()
        schema = _Schema.from_address(_address(schema_capsule, b"arrow_schema"))
        array = _Array.from_address(_address(array_capsule, b"arrow_array"))
        return [_wrap(schema, array, array_capsule)]
    if hasattr(source, "__arrow_c_stream__"):
        return list(_read_stream(source.__arrow_c_stream__()))
    raise TypeError(
        "An Arrow table or array should have __arrow_c_stream__ or __arrow_c_array__, "
        f"as those of pyarrow >= 14. Received {type(source).__name__}."
    )


def _read_stream(capsule: object) -> Iterator[ArrowArray]:
    stream = _Stream.from_address(_address(capsule, b"arrow_array_stream"))
    schema = _Schema()
    _check(stream, stream.get_schema(byref(stream), byref(schema)))
    keep_schema = _Owned(schema)
    empty = True
    while True:
        array = _Array()
        _check(stream, stream.get_next(byref(stream), byref(array)))
        if not array.release:
            break
        yield _wrap(schema, array, _Owned(array))
        empty = False
    if empty:
        yield _wrap(schema, None, None)
    del keep_schema


def _check(stream: Any, code: int) -> None:
    if code:
        reason = stream.get_last_error(byref(stream)) or b"no reason given"
        raise ValueError(
            f"The Arrow stream should be readable. Received error {code}: {reason.decode()}."
        )


def _wrap(schema: Any, array: Any, owner: object) -> ArrowArray:
    """Return ``array``, or an empty one if it is None, as an ``ArrowArray``."""
    name = (schema.name or b"").decode()
    kind = "dictionary" if schema.dictionary else schema.format.decode()
    children = tuple(
        _wrap(schema.children[i].contents, array and array.children[i].contents, owner)
        for i in range(schema.n_children)
    )
    if array is None:
        return ArrowArray(kind, name, 0, 0, children, (), owner)
    has_nulls = array.null_count != 0
    buffers = tuple(array.buffers[i] or 0 for i in range(array.n_buffers))
    if buffers and not has_nulls:
        buffers = (0, *buffers[1:])
    return ArrowArray(kind, name, array.length, array.offset, children, buffers, owner)


def _address(capsule: object, name: bytes) -> int:
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = c_void_p, [ctypes.py_object, c_char_p]
    address: int = get_pointer(capsule, name)
    return address
