"""An exported model, asked as a service asks it that knows nothing but what ``model.json`` says."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from torchrec.checks import did_you_mean
from torchrec.datasets.transform import RawBatch
from torchrec.datasets.transform.columns import LARGEST
from torchrec.datasets.transform.list_text import BRACKETS, split_brackets
from torchrec.datasets.transform.targets import LABELS
from torchrec.inference.exports._private import load_compiled
from torchrec.inference.exports.formats import DESCRIPTION, FORMAT
from torchrec.ops.hashing import hash_strings

_SIGN = 1 << 63


class ExportedModel:
    """A model in a folder that `torchrec.inference.export` wrote.

    Its inputs are read from tables row by row, by what the description beside it says and nothing else: slow and
    obvious, to compare with.

    Args:
        folder: of the export.

    Attributes:
        number_names: the features in the columns of ``numbers``.
        id_names: the features in the rows of ``lengths``.
        tasks: the kind of each task that it predicts.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of a newer format.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        path = Path(folder) / DESCRIPTION
        if not path.is_file():
            raise FileNotFoundError(
                f"An export should be a folder with {DESCRIPTION}. Received '{folder}', which has none."
            )
        try:
            self.description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            inputs = self.description["inputs"]
            self._numbers: list[dict[str, Any]] = inputs["numbers"]["columns"]
            self._ids: list[dict[str, Any]] = inputs["lengths"]["features"]
            self._is_weighted = "weights" in inputs
            self._file = Path(folder) / self.description["file"]
            self._kind = self.description["format"]
            outputs: dict[str, dict[str, Any]] = self.description["outputs"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"'{path}' should be of export format {FORMAT}, as it was written. It is damaged, or of another: "
                f"{error!r}."
            ) from None
        self.number_names = [one["feature"] for one in self._numbers]
        self.id_names = [one["feature"] for one in self._ids]
        self.tasks = {LABELS: "click"}
        self._outputs = ["probabilities"]
        if "probabilities" not in outputs:
            self.tasks = {one["task"]: one["kind"] for one in outputs.values()}
            self._outputs = list(outputs)

    @functools.cached_property
    def _call(self) -> Callable[[dict[str, Tensor]], list[Tensor]]:
        """What computes the outputs; reading rows does without."""
        return _loaded(self._kind, self._file, self._outputs)

    def read(self, table: pa.Table) -> RawBatch:
        """Return the inputs for the rows of a table.

        Args:
            table: with the columns that the description names.

        Raises:
            ValueError: a column is missing.
        """
        numbers = np.empty((table.num_rows, len(self._numbers)))
        for place, one in enumerate(self._numbers):
            numbers[:, place] = [_number(value, one) for value in _values(table, one["column"])]
        ids: list[int] = []
        lengths: list[list[int]] = []
        weights: list[float] = []
        for one in self._ids:
            bags = list(_bags(table, one))
            flat = [id for bag, _ in bags for id in bag]
            ids += _hashed(flat) if one["values"] == "strings" else [_signed(id) for id in flat]
            lengths.append([len(bag) for bag, _ in bags])
            weights += [weight for _, own in bags for weight in own]
        return RawBatch(
            torch.from_numpy(numbers),
            torch.tensor(ids, dtype=torch.int64),
            torch.tensor(lengths, dtype=torch.int64).view(len(self._ids), table.num_rows),
            torch.tensor(weights, dtype=torch.float32) if self._is_weighted else None,
        )

    def predict(self, inputs: RawBatch) -> Tensor:
        """Return what is predicted of some rows, task after task, float32 ``(B, columns)``.

        Args:
            inputs: from `read`.

        Raises:
            ImportError: the export takes a package that is not there.
        """
        given = {"numbers": inputs.numbers, "ids": inputs.ids, "lengths": inputs.lengths}
        if inputs.weights is not None:
            given["weights"] = inputs.weights
        rows = len(inputs.numbers)
        return torch.cat([output.view(rows, -1) for output in self._call(given)], dim=1)


def _loaded(
    kind: str, file: Path, outputs: list[str]
) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    """Return what computes the outputs of these names, the first that there are."""
    if kind == "onnx":
        if importlib.util.find_spec("onnxruntime") is None:
            raise ImportError("To run ONNX, `pip install onnxruntime`. Received no onnxruntime.")
        import onnxruntime

        session = onnxruntime.InferenceSession(file)

        def by_runtime(inputs: dict[str, Tensor]) -> list[Tensor]:
            arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
            return [torch.from_numpy(one) for one in session.run(outputs, arrays)]

        return by_runtime
    module = load_compiled(file) if kind == "aoti" else torch.export.load(file).module()

    def by_torch(inputs: dict[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(module(*inputs.values()))[: len(outputs)]

    return by_torch


def _values(table: pa.Table, column: str) -> Iterator[Any]:
    if column not in table.column_names:
        raise ValueError(
            f"The data should have column '{column}', which the export reads. Received the columns "
            f"{', '.join(table.column_names)}{did_you_mean(column, table.column_names) or '.'}"
        )
    array = table[column]
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("us")).cast(pa.int64())
        return (None if value is None else value / 1e6 for value in array.to_pylist())
    return iter(array.to_pylist())


def _number(value: Any, number: dict[str, Any]) -> float:
    """Return a number, of a vector that at its place."""
    if "place" in number:
        values = _listed(value or None, number, float)  # an empty text has no parts
        value = values[number["place"]] if values else None
    return np.nan if value is None else float(value)


def _bags(table: pa.Table, feature: dict[str, Any]) -> Iterator[tuple[list[Any], list[float]]]:
    """Give the ids of each row, and as many weights; neither where an id is missing."""
    is_single = feature.get("at_most") == 1 and "keep" not in feature
    is_text = feature["values"] == "strings"
    factors: Iterator[Any] = itertools.repeat(None)
    if "weights" in feature:
        factors = _values(table, feature["weights"])
    for value, own in zip(_values(table, feature["column"]), factors, strict=False):
        if is_single:
            ids, weights = [value], [1.0]
        elif "weight_separator" in feature:
            pairs = [_pair(part, feature) for part in _listed(value, feature, str)]
            ids = [id if is_text or id is None else int(id) for id, _ in pairs]
            weights = [weight for _, weight in pairs]
        else:
            ids = _listed(value, feature, str if is_text else int)
            weights = [_weight(one) for one in _listed(own, feature, float)] or [1.0] * len(ids)
        # NaN is a missing id as well.
        kept = [at for at, id in enumerate(ids) if id is not None and id == id]
        if "at_most" in feature:
            most = feature["at_most"]
            kept = kept[-most:] if feature.get("keep") == "last" else kept[:most]
        yield [ids[at] for at in kept], [weights[at] for at in kept]


def _pair(part: Any, feature: dict[str, Any]) -> tuple[Any, float]:
    """Return an id and the weight behind the last separator, 1 where there is none."""
    if not isinstance(part, str):
        return part, 1.0
    id, separator, weight = part.rpartition(feature["weight_separator"])
    return (id or None, _weight(float(weight) if weight else None)) if separator else (part, 1.0)


def _listed(value: Any, feature: dict[str, Any], parse: Callable[[str], Any]) -> list[Any]:
    """Return the values of a list, one in another after one; or the parts of a text, of which an empty one is none."""
    if not isinstance(value, str):
        return _flat(value)
    if feature["separator"] != BRACKETS:
        return [parse(part) if part else None for part in value.split(feature["separator"])]
    parts = split_brackets(pa.array([value])).to_pylist()[0]
    return [None if part is None else parse(part) for part in parts or ()]


def _flat(values: Sequence[Any] | None) -> list[Any]:
    found: list[Any] = []
    for value in values or ():
        found += _flat(value) if isinstance(value, list) else [value]
    return found


def _weight(value: Any) -> float:
    return float(value) if value is not None and abs(value) <= LARGEST else 1.0


def _hashed(ids: list[str]) -> list[int]:
    """Return the XXH64 of strings, as signed integers."""
    texts = [id.encode() for id in ids]
    ends = torch.tensor([0, *itertools.accumulate(map(len, texts))])
    data = torch.frombuffer(bytearray(b"".join(texts) or b"\0"), dtype=torch.uint8)
    found: list[int] = hash_strings(data, ends).tolist()
    return found


def _signed(id: Any) -> int:
    """Return an integer of 64 bits with its highest bit as the sign."""
    return (int(id) + _SIGN) % (2 * _SIGN) - _SIGN
