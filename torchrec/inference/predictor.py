"""A trained model that answers questions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from torch import Tensor, nn

from torchrec.bundle import Builder, is_bundle, load_bundle
from torchrec.datasets.features import IdFeature, TextType, number_columns, text_columns
from torchrec.datasets.text_types import schema_of
from torchrec.datasets.transform import FeatureTransform, NotPlainError, Target
from torchrec.datasets.transform.columns import TIMES
from torchrec.datasets.transform.targets import LABELS
from torchrec.datasets.utils import Batch
from torchrec.experiment.files import FILE_NAME, check_experiment, parse_experiment_yaml
from torchrec.experiment.schema import Experiment
from torchrec.inference.columns import require, to_table
from torchrec.inference.rows import plain_columns
from torchrec.inference.turns import Turns
from torchrec.modules.collection import collections_in
from torchrec.quant.collections import QuantizedCollection
from torchrec.runs import RunFolder
from torchrec.threads import ThreadChooser, using_threads

if TYPE_CHECKING:
    from torchrec.datasets.transform import FeatureCounts


# Rows whose layers are worth waking other threads for.
_FEWEST_FOR_THREADS = 256


class Predictor:
    """Predicts the probability that the label is 1.

    Columns go through the same transform as in training, so one needs no code of one's own for
    them; label and other columns may be there or not. Any number of threads may predict at once: where each asks for
    few rows they take turns, so that none waits much longer than another. Few rows are computed on one thread; for
    more it is measured whether as many as PyTorch has when the model is loaded are faster.

    Predictions are those of the model in memory, bit for bit, for batches of the same size. In
    batches of other sizes matrix products may sum in another order: the last bit can differ. So it can on other
    numbers of threads for few rows: these are always computed on one.

    Args:
        experiment: what was trained; None for a model that was trained without one.
        transform: from columns to the model's inputs.
        model: from these to logits; is put in evaluation mode.
    """

    def __init__(
        self, experiment: Experiment | None, transform: FeatureTransform, model: nn.Module
    ) -> None:
        self._experiment = experiment
        self.transform = transform
        self.model = model.eval()
        self._names = transform.input_columns
        # A model that was trained without a label says how likely a yes is.
        self._targets = dict(transform.targets) or {LABELS: Target(LABELS)}
        self._turns = Turns()
        self._threads = ThreadChooser(least=_FEWEST_FOR_THREADS)

    def __reduce__(self) -> tuple[type[Predictor], tuple[object, ...]]:
        """Copy and pickle what it was made of; locks and measurements are each one's own."""
        return type(self), (self._experiment, self.transform, self.model)

    @property
    def experiment(self) -> Experiment:
        """What was trained.

        Raises:
            ValueError: the model was trained without an experiment.
        """
        if self._experiment is None:
            raise ValueError(
                f"The bundle of the model should hold {FILE_NAME}, as `torchrec train` writes it. "
                "Received none: it was saved without."
            )
        return self._experiment

    @property
    def targets(self) -> Mapping[str, Target]:
        """What is predicted, by task; ``"labels"`` is the name of a single label."""
        return self._targets

    @property
    def input_columns(self) -> list[str]:
        """The columns that are read."""
        return self.transform.input_columns

    def require(self, columns: list[str]) -> None:
        """Check that data have what the features read.

        Args:
            columns: names of the data's columns.

        Raises:
            ValueError: one is missing; names it, the feature, and the nearest there is.
        """
        require(columns, self.transform)

    @property
    def text_types(self) -> pa.Schema:
        """Types of the columns of strings, for reading files that do not tell types.

        An id such as ``1234`` looks like a number in a CSV file: give this as ``schema`` to
        `torchrec.datasets.source.TableSource`, and `number_types` as ``assumed``. Types that the
        experiment gives, as ``data.types``, are among them.
        """
        kinds = self.transform.kinds
        names = text_columns(self.transform.features)
        for name, feature in self.transform.features.items():
            if kinds.get(name) == "strings":
                names.append(feature.column or name)
        strings: dict[str, TextType] = dict.fromkeys(names, "string")
        given = {} if self._experiment is None else self._experiment.data.types
        return schema_of(strings | given)

    @property
    def number_types(self) -> dict[str, TextType]:
        """Columns that features read numbers or whole numbers from, likewise."""
        kinds, features = self.transform.kinds, self.transform.features
        found: dict[str, TextType] = {
            feature.column or name: "integer"
            for name, feature in features.items()
            if isinstance(feature, IdFeature) and kinds.get(name) == "integers"
        }
        numbers = {name: f for name, f in features.items() if kinds.get(name) not in TIMES}
        return found | number_columns(numbers)

    def predict(self, data: object, *, batch_size: int = 8192) -> Tensor:
        """Predict for every row, in order.

        Args:
            data: a dict of columns (lists, numpy arrays, tensors, Arrow arrays); a dict of one
                sample, in which at least one column is a single number, string or None; a list of
                such dicts, as from JSON; a pandas or polars DataFrame; a row of one of pandas, a
                Series; an Arrow table, record batch or anything else that gives an Arrow stream.
                Times may be text of ISO 8601, but in Arrow tables.
            batch_size: rows given to the model at once. Default 8192.

        Returns:
            Probabilities, float32 ``(B,)``; of one task of another kind what `predict_tasks` gives.

        Raises:
            TypeError: data of none of these kinds.
            ValueError: a column is missing (the nearest is named), of another type than in
                training, or columns of different lengths; the model computes NaN or infinity, or
                predicts several tasks.
        """
        target = self._only_target("predict")
        with torch.inference_mode():
            return _joined(map(target.scores, self._batches(data, batch_size)))

    def predict_tasks(self, data: object, *, batch_size: int = 8192) -> dict[str, Tensor]:
        """Predict each task for every row, in order.

        Args:
            data: as for `predict`.
            batch_size: as for `predict`.

        Returns:
            By task, or ``"labels"`` of a model with one label: the probability of a click, a number, or
            the probabilities of classes; float32 ``(B,)`` or ``(B, classes)``.

        Raises:
            TypeError: as `predict`.
            ValueError: as `predict`.
        """
        targets, widths = self._targets, [target.width for target in self._targets.values()]
        parts: dict[str, list[Tensor]] = {name: [] for name in targets}
        with torch.inference_mode():
            for outputs in self._batches(data, batch_size):
                columns = outputs.split(widths, dim=1)
                for (name, target), own in zip(targets.items(), columns, strict=True):
                    parts[name].append(target.scores(own))
        empty = torch.empty(0, sum(widths)).split(widths, dim=1)
        return {
            name: _joined(parts[name] or [target.scores(none)])
            for (name, target), none in zip(targets.items(), empty, strict=True)
        }

    def _only_target(self, method: str) -> Target:
        """Return what the model predicts, if it is one thing."""
        if len(self._targets) > 1:
            raise ValueError(
                f"`{method}` should be called of a model with one label. Received one with the tasks "
                f"{', '.join(self._targets)}: `predict_tasks` gives all of them."
            )
        return next(iter(self._targets.values()))

    def logits(self, data: object, *, batch_size: int = 8192) -> Tensor:
        """Return what `predict` takes the sigmoid of, for metrics and for scores that are compared.

        Args:
            data: as for `predict`.
            batch_size: as for `predict`.

        Returns:
            Logits, float32 ``(B,)``; of a task with classes ``(B, width)``.

        Raises:
            TypeError: as `predict`.
            ValueError: as `predict`.
        """
        width = self._only_target("logits").width
        with torch.inference_mode():
            outputs = _joined(self._batches(data, batch_size), width)
            return outputs.squeeze(1) if width == 1 else outputs

    def predict_batches(
        self, stream: Iterable[object], *, batch_size: int = 8192
    ) -> Iterator[Tensor]:
        """Predict for each of many pieces of data, as they come.

        Args:
            stream: pieces as `predict` takes them.
            batch_size: rows given to the model at once. Default 8192.

        Yields:
            Probabilities of a piece, float32 ``(B,)``.
        """
        for data in stream:
            yield self.predict(data, batch_size=batch_size)

    def counts(
        self, *, reset: bool = False
    ) -> tuple[Mapping[str, FeatureCounts], Mapping[str, int]]:
        """Return what was odd about the data so far.

        Args:
            reset: count from zero again. Default False.

        Returns:
            By feature, what the transform counted (missing, unknown, truncated...); by table, how
            many ids were outside its rows.
        """
        counts = self.transform.counts
        outside: dict[str, int] = {}
        for _, collection in collections_in(self.model):
            outside |= collection.table_store().out_of_range_counts(reset)
        for module in self.model.modules():
            if isinstance(module, QuantizedCollection):
                outside |= module.out_of_range_counts(reset)
        return (counts.take() if reset else counts.peek()), outside

    def _batches(self, data: object, batch_size: int) -> Iterator[Tensor]:
        """Give the outputs of the model, ``(B, width of all targets)``, batch after batch."""
        if batch_size < 1:
            raise ValueError(f"`batch_size` should be at least 1. Received {batch_size}.")
        with self._turns, using_threads(1):
            few = self._few(data, batch_size)
            logits = None if few is None else self._logits(few, 0)
        if logits is not None:
            yield logits
            return
        table = to_table(data, self.transform)
        for start in range(0, table.num_rows, batch_size):
            batch = self.transform.transform(table.slice(start, batch_size), labels=False)
            with self._threads.step(len(batch.dense_features)):
                logits = self._logits(batch, start)
            yield logits

    def _few(self, data: object, batch_size: int) -> Batch | None:
        """Return few rows of plain values as a batch; None for all other data."""
        try:
            values, rows = plain_columns(data, self._names)
            return self.transform.encode(values, rows) if rows <= batch_size else None
        except NotPlainError:
            return None

    def _logits(self, batch: Batch, start: int) -> Tensor:
        logits: Tensor = self.model(batch.dense_features, batch.sparse_features)
        logits = logits.reshape(len(batch.dense_features), -1)
        if not logits.isfinite().all():
            raise _not_finite(logits, batch, start, self.transform.dense_names)
        return logits


def _not_finite(logits: Tensor, batch: Batch, start: int, dense_names: list[str]) -> ValueError:
    wrong = (~logits.isfinite()).any(dim=1).nonzero().flatten()
    row = int(wrong[0])
    worst = logits[row][~logits[row].isfinite()][0]
    inputs = ""
    if dense_names:
        dense = batch.dense_features[row]
        largest = int(dense.abs().argmax())
        inputs = f", where dense feature '{dense_names[largest]}' is {dense[largest]:g} once scaled"
    return ValueError(
        f"What the model computes should be finite. Received {worst:g} for row {start + row}"
        f"{inputs}; {len(wrong)} of {len(logits)} rows are like this."
    )


def _joined(parts: Iterable[Tensor], *shape: int) -> Tensor:
    found = [part.float() for part in parts]
    if len(found) == 1:
        return found[0]
    return torch.cat(found) if found else torch.empty(0, *shape)


def load(path: str | os.PathLike[str], builder: Builder | None = None) -> Predictor:
    """Load a saved model.

    Args:
        path: a run folder, or the bundle in it (``model/``).
        builder: makes the model, if it is one of your own: see `torchrec.bundle.load_bundle`.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: the bundle is damaged, of a newer format, or of a model that needs a ``builder``.

    Example:
        >>> import tempfile
        >>> from torchrec.datasets.features import SparseFeature
        >>> from torchrec.bundle import save_bundle
        >>> from torchrec.models.registry import ModelSection, build_model
        >>> clicks = {"user": ["ann", "ben"], "click": [0, 1]}
        >>> transform = FeatureTransform({"user": SparseFeature(rows=100)}, "click")
        >>> section = ModelSection(name="deepfm", dim=4)
        >>> model = build_model(section, transform.fit([pa.table(clicks)]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_bundle(f"{folder}/model", model, transform, section)
        ...     predictor = load(folder)
        >>> predictor.predict({"user": ["ann", "eve", None]}).shape
        torch.Size([3])
        >>> predictor.predict({"user": "ann"}).allclose(predictor.predict(clicks)[:1])
        True
    """
    folder, run = Path(path), RunFolder(path)
    if not is_bundle(folder):
        if run.model.is_dir():
            folder = run.model
        elif run.experiment.is_file():
            why = run.single() or "it has not ended; `torchrec train --resume` goes on with it"
            raise FileNotFoundError(
                f"The run in '{folder}' should have a model in '{run.model}'. Received none: {why}."
            )
    bundle = load_bundle(folder, builder=builder)
    text = bundle.documents.get(FILE_NAME)
    if text is None:
        return Predictor(None, bundle.transform, bundle.model)
    name = str(folder / FILE_NAME)
    experiment = check_experiment(parse_experiment_yaml(text, name), name)
    return Predictor(experiment, bundle.transform, bundle.model)
