"""A transform as files: what it is and learned as JSON, long arrays as Arrow, nothing to execute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from torchrec.datasets.transform.columns import Array, Kind
from torchrec.files import read_json

_FORMAT = "rowwise.transform"
_VERSION = 3  # 1: with a label at most, without weights and groups; 2: times of one kind
_JSON = "transform.json"
_ARROW = "transform.arrow"
_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("integers", pa.large_list(pa.int64())),
        ("numbers", pa.large_list(pa.float64())),
    ]
)


@dataclass(frozen=True)
class TableState:
    """What was learned for a table."""

    rows: int | None
    distinct: int | None


@dataclass(frozen=True)
class State:
    """A transform as JSON holds it.

    ``scales`` are those of dense features: fill, mean, deviation. ``targets`` are declarations of
    several, each label, kind and classes.
    """

    features: dict[str, object]
    label: str | None
    kinds: dict[str, Kind]
    scales: dict[str, list[float]]
    tables: dict[str, TableState]
    targets: dict[str, dict[str, object]] = field(default_factory=dict)
    weight: str | None = None
    groups: list[str] = field(default_factory=list)


def save(folder: str | Path, state: State, arrays: Mapping[str, Array]) -> None:
    """Write the state, and arrays of int64 and float64 by name.

    Args:
        folder: is made if it is not there.
        state: all but the arrays.
        arrays: ``table:NAME``, the vocabulary of a table; ``buckets:NAME``, boundaries of a feature.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    binary = _pack(arrays)
    content = asdict(state)
    digest = _digest(json.dumps(content), binary)
    document = {"format": _FORMAT, "version": _VERSION, "digest": digest, "state": content}
    (folder / _ARROW).write_bytes(binary)
    (folder / _JSON).write_text(json.dumps(document, indent=1) + "\n")


def load(folder: str | Path) -> tuple[State, dict[str, Array]]:
    """Read what `save` wrote.

    Raises:
        ValueError: the files are missing, damaged, or of a newer version of this library.
    """
    folder = Path(folder)
    try:
        document = read_json((folder / _JSON).read_bytes())
        binary = (folder / _ARROW).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(
            f"'{folder}' should hold a saved transform. Received no {Path(error.filename).name}."
        ) from None
    except ValueError:
        raise _damaged(folder, "what is no JSON") from None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise _damaged(folder, f"no document of format {_FORMAT}")
    version = document.get("version")
    if not isinstance(version, int) or version > _VERSION:
        raise ValueError(
            f"'{folder}' should hold a transform of version {_VERSION} or earlier. Received version "
            f"{version}: a newer version of this library wrote it."
        )
    content: Any = document.get("state")
    if _digest(json.dumps(content), binary) != document.get("digest"):
        raise _damaged(folder, "contents that do not have the digest written beside them")
    # What has the right digest is what `save` wrote.
    tables = {name: TableState(**table) for name, table in content["tables"].items()}
    return State(**{**content, "tables": tables}), _unpack(binary)


def _damaged(folder: Path, what: str) -> ValueError:
    return ValueError(f"'{folder}' should hold a whole transform. Received {what}.")


def _digest(text: str, binary: bytes) -> str:
    return hashlib.sha256(text.encode() + b"\0" + binary).hexdigest()


def _pack(arrays: Mapping[str, Array]) -> bytes:
    rows = [
        {
            "name": name,
            "integers": array if array.dtype == np.int64 else None,
            "numbers": array if array.dtype == np.float64 else None,
        }
        for name, array in arrays.items()
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _unpack(binary: bytes) -> dict[str, Array]:
    with pa.ipc.open_file(pa.BufferReader(binary)) as reader:
        table = reader.read_all()
    arrays = {}
    for row in range(table.num_rows):
        for column in ("integers", "numbers"):
            entry = table.column(column)[row]
            if entry.is_valid:
                arrays[table.column("name")[row].as_py()] = entry.values.to_numpy()
    return arrays
