"""What a trained model predicts for rows with labels: read and computed anew from its run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from torchrec.bundle import load_bundle
from torchrec.datasets.files import resolve_files
from torchrec.datasets.synthetic import LABEL, Limits, read_limits
from torchrec.datasets.transform.labels import Label
from torchrec.experiment.files import FILE_NAME, check_experiment, parse_experiment_yaml
from torchrec.experiment.sources import Sources, sources_of

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn

    from torchrec.datasets.source import TableSource
    from torchrec.datasets.transform import FeatureTransform
    from torchrec.experiment.schema import Experiment
    from torchrec.runs import RunFolder

Floats = NDArray[np.float64]

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
        task: of several tasks, whose logits are meant. Default: the only one.
    """

    experiment: Experiment
    transform: FeatureTransform
    model: nn.Module
    sources: Sources
    task: str | None = None

    @property
    def label(self) -> Label:
        """What is predicted.

        Raises:
            ValueError: there are several tasks, and none is chosen that is of kind click.
        """
        data, tasks = self.experiment.data, self.experiment.tasks or {}
        if data.label is not None:
            return Label(data.label)
        if self.task is None or tasks[self.task].kind != "click":
            raise ValueError(
                "The run should have one `data.label` for this, or a task of kind click. Received the "
                f"tasks {', '.join(tasks)}."
            )
        return Label(tasks[self.task].label)

    def of_first_click(self) -> Trained:
        """Return the same model for the first of its tasks of kind click; itself, if it has one task."""
        clicks = (
            name for name, one in (self.experiment.tasks or {}).items() if one.kind == "click"
        )
        return replace(self, task=next(clicks, None))

    def logits(self, table: pa.Table) -> Floats:
        """Return the logit of every row of a table with the columns of the features.

        Raises:
            ValueError: one is not a number.
        """
        parts, column = [], self._column()
        with torch.inference_mode():
            for start in range(0, table.num_rows, _BATCH):
                batch = self.transform.transform(table.slice(start, _BATCH), labels=False)
                logits = self.model(batch.dense_features, batch.sparse_features)
                columns = logits.reshape(len(logits), -1)
                parts.append(columns[:, column].double().numpy())
        found = np.concatenate([np.empty(0), *parts])
        if np.isnan(found).any():
            raise ValueError(
                f"What the model computes should be numbers. Received NaN for {np.isnan(found).sum()} of "
                f"{len(found)} rows."
            )
        return found

    def _column(self) -> int:
        """Return where the logit of the task is among the outputs of the model."""
        if self.task is None:
            return 0
        targets = self.transform.targets
        return sum(self.transform.outputs[: list(targets).index(self.task)])

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


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for rows with labels.

    Attributes:
        trained: the model.
        part: of the data: ``"test"`` or ``"valid"``.
        rows: of that part.
        table: the rows that were predicted for: what the features read.
        labels: 0 or 1, ``(N,)``.
        logits: ``(N,)``.
        seconds: that it took.
    """

    trained: Trained
    part: str
    rows: int
    table: pa.Table
    labels: Floats
    logits: Floats
    seconds: float

    @property
    def probabilities(self) -> Floats:
        """The sigmoid of the logits."""
        return sigmoid(self.logits)

    @property
    def losses(self) -> Floats:
        """The log loss of each row."""
        return losses(self.logits, self.labels)

    def sentence(self) -> str:
        """Say of what it is."""
        count, task = len(self.labels), self.trained.task
        of_task = "" if task is None else f" The labels are those of task '{task}'."
        return (
            f"Of {'all' if count == self.rows else f'{count:,} of the'} {self.rows:,} rows of the "
            f"{self.part} data, predicted in {self.seconds:.1f} s.{of_task}"
        )


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
    label = trained.label
    columns = list(dict.fromkeys([*trained.transform.input_columns, *label.columns]))
    table, rows = sample(source.scan(columns), most)
    labels = label.read(table).astype(np.float64)
    logits = trained.logits(table)
    return Predictions(trained, part, rows, table, labels, logits, time.perf_counter() - start)


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


def sigmoid(logits: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


def losses(logits: Floats, labels: Floats) -> Floats:
    """Return the log loss of each sample."""
    signed = np.where(labels > 0, -logits, logits)
    return np.maximum(signed, 0) + np.log1p(np.exp(-np.abs(logits)))
