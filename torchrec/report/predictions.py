"""What a trained model predicts for rows with labels: read and computed anew from its run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrec.bundle import load_bundle
from torchrec.datasets.files import resolve_files
from torchrec.datasets.synthetic import LABEL, Limits, read_limits
from torchrec.datasets.transform import GroupedTransform
from torchrec.datasets.transform.targets import LABELS
from torchrec.datasets.utils import Batch
from torchrec.experiment.files import FILE_NAME, check_experiment, parse_experiment_yaml
from torchrec.experiment.sources import Sources, sources_of
from torchrec.experiment.tasks import TaskSection
from torchrec.metrics import GroupedMetrics
from torchrec.report.task_predictions import TaskPredictions

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn

    from torchrec.datasets.source import TableSource
    from torchrec.datasets.transform import FeatureTransform
    from torchrec.experiment.schema import Experiment
    from torchrec.runs import RunFolder

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ROWS = 200_000  # that a report predicts for at most
_BATCH = 8192


@dataclass(frozen=True)
class Trained:
    """A trained model, and where its data are.

    Attributes:
        experiment: what was trained.
        transform: from columns to the model's inputs.
        model: from these to logits; in evaluation mode.
        sources: the rows of training, validation and test.
    """

    experiment: Experiment
    transform: FeatureTransform
    model: nn.Module
    sources: Sources

    @property
    def tasks(self) -> dict[str, TaskSection]:
        """What is predicted, by the names of its targets."""
        return tasks_of(self.experiment)

    @property
    def columns(self) -> list[str]:
        """The columns that are read of rows with labels."""
        return self._with_groups().columns

    def _with_groups(self) -> GroupedTransform:
        columns = GroupedMetrics(self.experiment.group_metrics).columns
        return GroupedTransform(self.transform, columns)

    def scores(self, table: pa.Table) -> dict[str, Floats]:
        """Return what the model says of every row of a table with the columns of the features.

        Returns:
            By target what its metrics are given: logits of clicks and numbers ``(N,)``, probabilities of
            classes ``(N, classes)``.

        Raises:
            ValueError: one is not a number.
        """
        return self._scores(self.transform.transform(x, labels=False) for x in _parts(table))

    def predict(self, table: pa.Table, *, complete: bool = True) -> list[TaskPredictions]:
        """Return what the model says of rows with labels, of each task.

        Args:
            table: with `columns`.
            complete: whether the table has all rows of its groups, so that there are metrics within these.
                Default True.

        Raises:
            ValueError: labels, weights or groups do not read, or a prediction is not a number.
        """
        read, outcomes = self._with_groups(), []

        def batches() -> Iterator[Batch]:
            for part in _parts(table):
                batch = read(part)
                outcomes.append(_Outcome(batch.targets, batch.weights, batch.groups))
                yield batch

        scores = self._scores(batches())
        outcome = _Outcome.joined(outcomes)
        experiment, tasks = self.experiment, self.tasks
        found = []
        for name, section in tasks.items():
            rows = outcome.rows_of(section)
            metrics = experiment.metrics if section.metrics is None else section.metrics
            found.append(
                TaskPredictions(
                    name if len(tasks) > 1 else "",
                    section,
                    rows,
                    outcome.targets[name][rows].double().numpy(),
                    scores[name][rows],
                    None if outcome.weights is None else outcome.weights[rows].double().numpy(),
                    {column: ids[rows].numpy() for column, ids in outcome.groups.items()},
                    metrics if complete else (),
                )
            )
        return found

    def _scores(self, batches: Iterable[Batch]) -> dict[str, Floats]:
        targets = {name: section.target for name, section in self.tasks.items()}
        parts: dict[str, list[Floats]] = {name: [] for name in targets}
        for batch in batches:
            with torch.inference_mode():
                outputs = self.model(batch.dense_features, batch.sparse_features)
                columns = outputs.reshape(len(outputs), -1).split(self.transform.outputs, dim=1)
                for (name, target), own in zip(targets.items(), columns, strict=True):
                    found = own.squeeze(1) if target.kind == "click" else target.scores(own)
                    parts[name].append(found.double().numpy())
        scores = {name: np.concatenate(found) for name, found in parts.items()}
        for name, found in scores.items():
            wrong = np.isnan(found).reshape(len(found), -1).any(1)
            if wrong.any():
                raise ValueError(
                    f"What the model computes should be numbers. Received NaN for {wrong.sum()} of "
                    f"{len(found)} rows of '{name}'."
                )
        return scores

    def evaluated_part(self) -> tuple[str, TableSource]:
        """Return the test data, or else those of validation.

        Raises:
            ValueError: there are neither.
        """
        for name, source in (("test", self.sources.test), ("valid", self.sources.valid)):
            if source is not None and source.has_rows():
                return name, source
        raise ValueError(
            "The run should have test or validation data to predict for. Received none."
        )


class _Outcome(NamedTuple):
    """Targets, weights and groups of rows, without their features."""

    targets: Mapping[str, Tensor]
    weights: Tensor | None
    groups: Mapping[str, Tensor]

    @classmethod
    def joined(cls, parts: Sequence[_Outcome]) -> _Outcome:
        """Return those of all parts; there is one at least."""
        targets, weights, groups = zip(*parts, strict=True)
        return cls(
            {name: torch.cat([one[name] for one in targets]) for name in targets[0]},
            None if weights[0] is None else torch.cat(weights),
            {name: torch.cat([one[name] for one in groups]) for name in groups[0]},
        )

    def rows_of(self, task: TaskSection) -> Integers:
        """Return which rows count for a task: those with a weight, where its condition holds."""
        counts = torch.ones(len(next(iter(self.targets.values()))), dtype=torch.bool)
        if self.weights is not None:
            counts &= self.weights != 0
        if task.given is not None:
            counts &= self.targets[task.given] != 0
        found: Integers = np.flatnonzero(counts.numpy())
        return found


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for rows with labels.

    Attributes:
        trained: the model.
        part: of the data: ``"test"`` or ``"valid"``.
        rows: of that part.
        table: the rows that were predicted for: what the features read.
        tasks: what is predicted of each task.
        seconds: that it took.
    """

    trained: Trained
    part: str
    rows: int
    table: pa.Table
    tasks: Sequence[TaskPredictions]
    seconds: float

    @property
    def is_whole(self) -> bool:
        """Whether all rows of the part were predicted for."""
        return bool(self.table.num_rows == self.rows)

    def sentence(self) -> str:
        """Say of what it is."""
        count = self.table.num_rows
        conditions = "".join(
            f" Task '{one.name}' counts where '{one.section.given}' is 1: {len(one.rows):,} rows."
            for one in self.tasks
            if one.section.given is not None
        )
        return (
            f"Of {'all' if self.is_whole else f'{count:,} of the'} {self.rows:,} rows of the "
            f"{self.part} data, predicted in {self.seconds:.1f} s.{conditions}"
        )

    def missing(self) -> str:
        """Say what is not measured as not all rows were predicted for; empty if they were."""
        metrics = self.trained.experiment.group_metrics
        if not metrics or self.is_whole:
            return ""
        return (
            f"Metrics within groups ({', '.join(metrics)}) need all rows of a group: they have no intervals "
            f"with {self.table.num_rows:,} of the {self.rows:,} rows."
        )


def tasks_of(experiment: Experiment) -> dict[str, TaskSection]:
    """Return what an experiment predicts, by the names of its targets: one label is a task as others are."""
    if experiment.data.label is not None:
        return {LABELS: TaskSection(label=experiment.data.label)}
    return dict(experiment.tasks or {})


def load_trained(folder: RunFolder) -> Trained:
    """Load the model of a run, and find its data.

    Args:
        folder: of a run that has ended.

    Raises:
        FileNotFoundError: the model is not there (yet), or files of the data are not there any more.
        ValueError: something is damaged, or not as the experiment says.
    """
    if folder.members() and not folder.model.is_dir():
        raise FileNotFoundError(
            f"The run in '{folder.path}' should have a model to predict with. Received none: "
            f"{folder.single()}."
        )
    bundle = load_bundle(folder.model)
    text = bundle.documents.get(FILE_NAME)
    if text is None:
        raise ValueError(
            f"The model in '{folder.model}' should have been saved with its experiment. Received none."
        )
    name = str(folder.model / FILE_NAME)
    experiment = check_experiment(parse_experiment_yaml(text, name), name)
    return Trained(experiment, bundle.transform, bundle.model.eval(), sources_of(experiment))


def predict_part(trained: Trained, most: int = ROWS) -> Predictions:
    """Predict for the test data of a run, or else its validation data.

    Args:
        trained: the model and its data.
        most: rows at most; of more, every second, fourth, eighth... is taken. Default 200,000.

    Raises:
        ValueError: there are no such data, or they do not read.
    """
    start = time.perf_counter()
    part, source = trained.evaluated_part()
    table, rows = sample(source.scan(trained.columns), most)
    tasks = trained.predict(table, complete=table.num_rows == rows)
    return Predictions(trained, part, rows, table, tasks, time.perf_counter() - start)


def best_possible(experiment: Experiment | None) -> dict[str, dict[str, float]]:
    """Return what a model would reach that knew all probabilities, by part and metric.

    It is known of generated files that are the whole of a part, with their own label, and still there.

    Args:
        experiment: whose data; None: nothing is known.
    """
    if experiment is None or experiment.data.drop is not None or experiment.data.label != LABEL:
        return {}
    found = {}
    for part, paths in (("valid", experiment.data.valid), ("test", experiment.data.test)):
        limits = _limits(paths)
        if limits is not None:
            found[part] = {"auc": limits.auc, "ne": limits.ne, "logloss": limits.logloss}
    return found


def shared_files(experiment: Experiment | None) -> list[str]:
    """Say which parts of the data have files of the training data: their metrics tell nothing.

    Args:
        experiment: whose data; None: nothing is known.
    """
    if experiment is None:
        return []
    data = experiment.data
    learned = _real_paths(data.train, data.format)
    found = []
    for part, paths in (("validation", data.valid), ("test", data.test)):
        shared = sorted(_real_paths(paths, data.format) & learned)
        if shared:
            found.append(
                f"The {part} data have files of the training data, which the model may know by heart: "
                f"{', '.join(shared)}."
            )
    return found


def _real_paths(
    paths: Sequence[str], format: Literal["auto", "parquet", "csv", "tsv", "json"]
) -> set[str]:
    try:
        return (
            {os.path.realpath(file.path) for file in resolve_files(paths, format)}
            if paths
            else set()
        )
    except (OSError, ValueError):  # which the page says where it needs them
        return set()


def _limits(paths: Sequence[str]) -> Limits | None:
    if len(paths) != 1:
        return None
    try:
        files = resolve_files(paths)
        if len(files) != 1 or files[0].format != "parquet":
            return None
        return read_limits(files[0].path)
    except (OSError, ValueError):  # which the page says where it needs them
        return None


def sample(tables: Iterator[pa.Table], most: int) -> tuple[pa.Table, int]:
    """Return every row of some tables, or every second, fourth, eighth... so that there are not too many.

    Args:
        tables: read once; one at least.
        most: rows that are returned at most.

    Returns:
        The rows, and how many there were.

    Example:
        >>> import pyarrow as pa
        >>> rows, seen = sample(iter([pa.table({"n": range(5)}), pa.table({"n": range(5, 11)})]), 4)
        >>> rows["n"].to_pylist(), seen
        ([0, 4, 8], 11)
    """
    import pyarrow as pa

    kept: list[pa.Table] = []
    stride, seen = 1, 0
    for table in tables:
        kept.append(table.take(np.arange(-seen % stride, table.num_rows, stride)))
        seen += table.num_rows
        while sum(part.num_rows for part in kept) > most:
            whole = pa.concat_tables(kept)
            kept, stride = [whole.take(np.arange(0, whole.num_rows, 2))], stride * 2
    return pa.concat_tables(kept).combine_chunks(), seen


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    """Yield the rows of a table some thousand at a time."""
    for start in range(0, table.num_rows, _BATCH):
        yield table.slice(start, _BATCH)
