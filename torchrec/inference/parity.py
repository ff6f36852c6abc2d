"""Whether two forms of a model say the same of the same rows, and which feature makes the difference."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch
from torch import Tensor, nn

from torchrec.datasets.transform import FeatureTransform, RawBatch
from torchrec.datasets.transform.columns import LARGEST
from torchrec.inference.columns import to_table
from torchrec.inference.exports.formats import DESCRIPTION
from torchrec.inference.exports.replay import ExportedModel
from torchrec.inference.predictor import Predictor, load
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

_ALONE = 1_000  # rows of which each feature is asked alone
_BATCH = 8_192


@dataclass(frozen=True)
class FeatureDifference:
    """How a feature differs between two forms of a model.

    Attributes:
        inputs: rows whose numbers, ids or weights differ.
        vectors: the greatest difference of the numbers that are looked up for it; None where nothing is looked up,
            or none can be seen: in an export.
        alone: the greatest difference of predictions where all other features are missing, in the first 1,000 rows.
    """

    inputs: int = 0
    vectors: float | None = None
    alone: float = 0.0


@dataclass(frozen=True)
class Parity:
    """What a comparison found.

    Attributes:
        rows: that were compared.
        tolerance: that predictions may differ by.
        beyond: rows whose predictions differ by more.
        greatest: difference of predictions.
        worst: the row that has it; None without rows.
        features: by name.
    """

    rows: int
    tolerance: float
    beyond: int
    greatest: float
    worst: int | None
    features: Mapping[str, FeatureDifference]

    @property
    def holds(self) -> bool:
        """Whether inputs are the same and predictions within the tolerance."""
        return self.beyond == 0 and not any(one.inputs for one in self.features.values())


def compare(
    run: str | os.PathLike[str] | Predictor,
    other: str | os.PathLike[str],
    tables: Iterable[pa.Table],
    *,
    tolerance: float = 1e-6,
) -> Parity:
    """Ask a model and another form of it for the same rows.

    An export is asked by what its ``model.json`` says, as a service asks it; a difference of inputs then means that
    the two read the data differently. Another run or bundle, such as a quantised one, is asked like the first.

    Args:
        run: a run, a bundle, or what `torchrec.inference.load` makes of them.
        other: an export of it, or another run or bundle.
        tables: rows with the columns that the features read.
        tolerance: that predictions may differ by. Default 1e-6.

    Raises:
        FileNotFoundError: there is no such model.
        ImportError: the export takes a package that is not there.
        ValueError: columns are missing, or the two predict different tasks or read different features.
    """
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` should be at least 0. Received {tolerance}.")
    predictor = run if isinstance(run, Predictor) else load(run)
    first: _Side
    second: _Side
    if (Path(other) / DESCRIPTION).is_file():
        first, second = _RawBundle(predictor), _Export(ExportedModel(other))
    else:
        first, second = _Bundle(predictor), _Bundle(load(other))
    _require_alike(first, second)
    found = {name: FeatureDifference() for name in first.features()}
    rows, beyond, greatest, worst = 0, 0, 0.0, None
    for table in tables:
        table = to_table(table, predictor.transform)
        for start in range(0, table.num_rows, _BATCH):
            part = table.slice(start, _BATCH)
            mine, theirs = first.ask(part), second.ask(part)
            differences = _differences(mine.scores, theirs.scores)
            beyond += int((differences > tolerance).sum())
            if worst is None or differences.max() > greatest:
                worst, greatest = rows + int(differences.argmax()), float(differences.max())
            for name in found:
                found[name] = _added(found[name], mine, theirs, name)
            if rows < _ALONE:
                some = part.slice(0, _ALONE - rows)
                for name in found:
                    alone = _alone(some, predictor, name)
                    apart = _differences(first.ask(alone).scores, second.ask(alone).scores)
                    most = max(found[name].alone, float(apart.max()))
                    found[name] = dataclasses.replace(found[name], alone=most)
            rows += part.num_rows
    return Parity(rows, tolerance, beyond, greatest, worst, found)


@dataclass(frozen=True)
class _Bags:
    """Numbers, ids or weights of a feature, some a row."""

    lengths: Tensor
    values: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True)
class _Answer:
    """What a model makes of rows: its inputs and vectors by feature, and its predictions, ``(B, columns)``."""

    inputs: Mapping[str, _Bags]
    vectors: Mapping[str, Tensor]
    scores: Tensor


class _Side(Protocol):
    def features(self) -> list[str]: ...

    def tasks(self) -> list[str]: ...

    def ask(self, table: pa.Table) -> _Answer: ...


class _Bundle:
    """A model of this package, asked by its own transform."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def features(self) -> list[str]:
        return list(self._predictor.transform.features)

    def tasks(self) -> list[str]:
        return [f"{name} ({one.kind})" for name, one in self._predictor.targets.items()]

    def ask(self, table: pa.Table) -> _Answer:
        with _watched(self._predictor.model) as vectors:
            scores = _scores(self._predictor, table)
        return _Answer(self._inputs(table), vectors, scores)

    def _inputs(self, table: pa.Table) -> dict[str, _Bags]:
        transform = self._predictor.transform
        batch = transform.transform(table, labels=False)
        found = _of_numbers(_features_of(transform, transform.dense_names), batch.dense_features)
        for name, bags in batch.sparse_features.to_dict().items():
            found[name] = _Bags(bags.lengths(), bags.values(), bags.weights_or_none())
        return found


class _RawBundle(_Bundle):
    """The same, whose inputs are those that an export is given."""

    def _inputs(self, table: pa.Table) -> dict[str, _Bags]:
        transform = self._predictor.transform
        numbers = _features_of(transform, [*transform.dense_names, *transform.boundaries])
        ids = [key for key in transform.sparse_keys if key not in transform.boundaries]
        return _of_raw(transform.read_raw(table), numbers, ids)


class _Export:
    """An exported model."""

    def __init__(self, model: ExportedModel) -> None:
        self._model = model

    def features(self) -> list[str]:
        return list(dict.fromkeys([*self._model.number_names, *self._model.id_names]))

    def tasks(self) -> list[str]:
        return [f"{name} ({kind})" for name, kind in self._model.tasks.items()]

    def ask(self, table: pa.Table) -> _Answer:
        raw = self._model.read(table)
        inputs = _of_raw(raw, self._model.number_names, self._model.id_names)
        return _Answer(inputs, {}, self._model.predict(raw))


def _of_numbers(features: list[str], numbers: Tensor) -> dict[str, _Bags]:
    """Return the numbers of each feature; of a vector several a row.

    Args:
        features: of each column.
        numbers: ``(B, columns)``.
    """
    found: dict[str, _Bags] = {}
    # What float32 does not hold is missing: a transform says so of raw numbers, an export to itself.
    numbers = torch.where(numbers.abs() <= LARGEST, numbers, torch.nan)
    for name in dict.fromkeys(features):
        own = numbers[:, [place for place, one in enumerate(features) if one == name]]
        lengths = torch.full((len(own),), own.shape[1])
        found[name] = _Bags(lengths, own.flatten())
    return found


def _of_raw(raw: RawBatch, numbers: list[str], ids: list[str]) -> dict[str, _Bags]:
    found = _of_numbers(numbers, raw.numbers)
    sizes = raw.lengths.sum(1).tolist()
    weights = [None] * len(ids) if raw.weights is None else raw.weights.split(sizes)
    for place, values in enumerate(raw.ids.split(sizes)):
        found[ids[place]] = _Bags(raw.lengths[place], values, weights[place])
    return found


def _features_of(transform: FeatureTransform, names: Iterable[str]) -> list[str]:
    """Return the features of numbers, of which those of a vector are called as ``image[0]``."""
    return [name if name in transform.features else name.rpartition("[")[0] for name in names]


def _scores(predictor: Predictor, table: pa.Table) -> Tensor:
    predicted = predictor.predict_tasks(table, batch_size=_BATCH).values()
    return torch.cat([one.view(table.num_rows, -1) for one in predicted], dim=1)


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Give what collections of a model look up while inside, by feature: pooled vectors, or one an id."""
    found: dict[str, Tensor] = {}

    def note(module: nn.Module, _: Any, output: object) -> None:
        if isinstance(output, KeyedTensor):
            found.update(output.to_dict())
        elif isinstance(output, dict):
            jagged = {k: v for k, v in output.items() if isinstance(v, JaggedTensor)}
            found.update({name: one.values() for name, one in jagged.items()})

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _require_alike(first: _Side, second: _Side) -> None:
    for what, mine, theirs in (
        ("predict the same tasks", first.tasks(), second.tasks()),
        ("read the same features", sorted(first.features()), sorted(second.features())),
    ):
        if mine != theirs:
            raise ValueError(
                f"Forms of a model should {what}. Received {', '.join(mine)} and {', '.join(theirs)}."
            )


def _alone(table: pa.Table, predictor: Predictor, name: str) -> pa.Table:
    """Return rows in which all features but one are missing."""
    feature = predictor.transform.features[name]
    kept = {feature.column or name, getattr(feature, "weights", None)}
    return pa.table(
        {
            column: table[column]
            if column in kept
            else pa.nulls(table.num_rows, table.schema.field(column).type)
            for column in table.column_names
        }
    )


def _added(
    found: FeatureDifference, mine: _Answer, theirs: _Answer, name: str
) -> FeatureDifference:
    differ = _differing(mine.inputs[name], theirs.inputs[name])
    vectors = found.vectors
    if name in mine.vectors and name in theirs.vectors:
        one, other = mine.vectors[name], theirs.vectors[name]
        if one.shape != other.shape:
            apart = float("inf")
        else:
            apart = float(_apart(one.float(), other.float()).max()) if one.numel() else 0.0
        vectors = max(vectors or 0.0, apart)
    return dataclasses.replace(found, inputs=found.inputs + int(differ.sum()), vectors=vectors)


def _differing(first: _Bags, second: _Bags) -> Tensor:
    """Return for each row whether it has other values, ``(B,)``; missing numbers are the same."""
    same_size = first.lengths == second.lengths
    differ = ~same_size
    mine, theirs = (same_size.repeat_interleave(one.lengths) for one in (first, second))
    row = torch.arange(len(differ)).repeat_interleave(first.lengths)[mine]
    pairs = [(first.values, second.values)]
    if first.weights is not None and second.weights is not None:
        pairs.append((first.weights, second.weights))
    for one, other in pairs:
        one, other = one[mine], other[theirs]
        differ[row[(one != other) & ~((one != one) & (other != other))]] = True
    return differ


def _differences(first: Tensor, second: Tensor) -> Tensor:
    """Return the greatest difference of each row."""
    return _apart(first, second).amax(dim=1)


def _apart(first: Tensor, second: Tensor) -> Tensor:
    """Return how far numbers are apart: infinitely where one of them is NaN, and not where both are the same."""
    is_same = (first == second) | (first.isnan() & second.isnan())
    return (first - second).abs().nan_to_num(torch.inf).masked_fill(is_same, 0.0)
