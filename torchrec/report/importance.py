"""What the model loses when a column tells nothing: permutation importance with intervals."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from torchrec.metrics import Interval, contrast

if TYPE_CHECKING:
    import pyarrow as pa

    from torchrec.report.predictions import Predictions
    from torchrec.report.task_predictions import TaskPredictions

BUDGET = 200_000  # predictions in all
REPEATS = 3
_LEAST, _MOST = 1_000, 20_000  # rows


@dataclass(frozen=True)
class Importance:
    """What permuting a column costs a task.

    Attributes:
        name: of the features that read it.
        lost: by how much each metric gets worse, with the interval of the mean over the repeats.
    """

    name: str
    lost: Mapping[str, Interval]


@dataclass(frozen=True)
class Importances:
    """Of all columns, for one task.

    Attributes:
        task: what is predicted for the rows, with the columns as they are.
        metrics: that are looked at, the one that tells most first.
        columns: the columns, in the order of the features.
    """

    task: TaskPredictions
    metrics: Sequence[str]
    columns: list[Importance]


@dataclass(frozen=True)
class Shuffles:
    """What shuffling the columns costs all tasks.

    Attributes:
        tasks: what it costs each.
        rows: that were predicted for.
        seconds: that it took.
    """

    tasks: list[Importances]
    rows: int
    seconds: float


def permutation_importance(
    predictions: Predictions, *, budget: int = BUDGET, repeats: int = REPEATS, seed: int = 0
) -> Shuffles:
    """Permute each column in turn and see what is lost, of all tasks at once.

    What is looked at of a task is what models of its kind are judged by, such as the AUC, and the last metric
    of its kind, which is defined where the first may not be. Which rows: as many as the budget allows, evenly
    chosen; those that count for a task. Intervals are over the rows, which stay the same, so what they have in
    common cancels out. What two columns both tell is lost with neither.

    Args:
        predictions: of the model as it is.
        budget: rows times columns times repeats. Default 200,000.
        repeats: permutations of each column. Default 3.
        seed: of the permutations. Default 0.
    """
    start = time.perf_counter()
    groups = _groups(predictions)
    total = predictions.table.num_rows
    rows = min(total, _MOST, max(_LEAST, budget // (repeats * max(len(groups), 1))))
    chosen = np.linspace(0, total - 1, rows).astype(np.int64)
    table = predictions.table.take(chosen)
    targets = list(predictions.trained.tasks)
    found = []
    for one in predictions.tasks:
        metrics = one.declared.metrics
        found.append(Importances(one.at(chosen), (metrics[0], metrics[-1]), []))
    random = np.random.default_rng(seed)
    for name, columns in groups.items():
        permuted = [
            predictions.trained.scores(_permuted(table, columns, random.permutation(rows)))
            for _ in range(repeats)
        ]
        for target, task in zip(targets, found, strict=True):
            places = np.searchsorted(chosen, task.task.rows)
            others = [replace(task.task, scores=scores[target][places]) for scores in permuted]
            lost = {metric: _lost(metric, task.task, others) for metric in task.metrics}
            task.columns.append(Importance(name, lost))
    return Shuffles(found, rows, time.perf_counter() - start)


def _lost(metric: str, task: TaskPredictions, permuted: Sequence[TaskPredictions]) -> Interval:
    """Return by how much worse the mean of several predictions is for the same rows."""
    estimates = [one.estimate(metric) for one in (task, *permuted)]
    sign = 1.0 if task.report.better[metric] == "higher" else -1.0
    weights = [sign, *[-sign / len(permuted)] * len(permuted)]
    return contrast(estimates, weights).difference


def _groups(predictions: Predictions) -> dict[str, list[str]]:
    """Return the columns to permute together, by the names of the features that read them."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, feature in predictions.trained.transform.features.items():
        weights = getattr(feature, "weights", None)
        columns = (feature.column or name, *([] if weights is None else [weights]))
        groups.setdefault(columns, []).append(name)
    return {", ".join(names): list(columns) for columns, names in groups.items()}


def _permuted(
    table: pa.Table, columns: list[str], order: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> pa.Table:
    for column in columns:
        place = table.schema.get_field_index(column)
        table = table.set_column(place, table.schema.field(place), table[column].take(order))
    return table
