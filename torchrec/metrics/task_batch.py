"""A batch of several tasks, and what is worked out from it once for all metrics that ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchrec.ops.metrics import weighted_sums

# A function of a batch and its further arguments: `(function, *arguments)`. Whatever has the same term
# gets the same tensor.
Term = tuple[Any, ...]

OneOrByTask = Tensor | Mapping[str, Tensor]


class TaskBatch:
    """Predictions, labels and weights of some tasks, a row each, and the terms worked out from them.

    It lives for one update, and owns what is shared between metrics during it.

    Args:
        predictions: ``(T, B)``, or ``(T, B, C)`` for several classes.
        labels: ``(T, B)``.
        weights: ``(T, B)``; None: 1 each.

    Example:
        >>> batch = TaskBatch(
        ...     torch.tensor([[0.5, 1.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 1.0]])
        ... )
        >>> batch.get(weighted_num_samples)
        tensor([3.], dtype=torch.float64)
    """

    def __init__(self, predictions: Tensor, labels: Tensor, weights: Tensor | None) -> None:
        self.raw_predictions = predictions
        self.raw_labels = labels
        self.raw_weights = weights
        self._terms: dict[Term, Tensor] = {}

    @property
    def size(self) -> int:
        """How many samples of each task there are."""
        return self.raw_labels.shape[1]

    @property
    def predictions(self) -> Tensor:
        """The predictions as float64."""
        return self.get(_predictions)

    @property
    def labels(self) -> Tensor:
        """The labels as float64."""
        return self.get(_labels)

    @property
    def weights(self) -> Tensor:
        """The weights as float64."""
        return self.get(_weights)

    @property
    def weights_or_ones(self) -> Tensor:
        """The weights as they came, or 1 each."""
        if self.raw_weights is None:
            return torch.ones_like(self.raw_labels)
        return self.raw_weights

    def get(self, function: Callable[..., Tensor], *arguments: object) -> Tensor:
        """Return ``function(self, *arguments)``, worked out when it is first asked for.

        Args:
            function: one of a module, so that whoever asks for it means the same.
            *arguments: numbers or strings.
        """
        term = (function, *arguments)
        value = self._terms.get(term)
        if value is None:
            value = self._terms[term] = function(self, *arguments)
        return value

    def stacked(self, terms: tuple[Term, ...]) -> Tensor:
        """Return several sums ``(T,)`` as one ``(S, T)``, which should not be written to."""
        value = self._terms.get(terms)
        if value is None:
            sums = [self.get(*term) for term in terms]
            value = self._terms[terms] = torch.stack(sums)
        return value


class _TaskRow(TaskBatch):
    """The batch of one of several tasks, which takes its sums from theirs."""

    def __init__(self, batch: TaskBatch, task: int) -> None:
        rows = slice(task, task + 1)
        weights = batch.raw_weights
        super().__init__(
            batch.raw_predictions[rows],
            batch.raw_labels[rows],
            None if weights is None else weights[rows],
        )
        self._batch = batch
        self._rows = rows

    def get(self, function: Callable[..., Tensor], *arguments: object) -> Tensor:
        return self._batch.get(function, *arguments)[self._rows]

    def stacked(self, terms: tuple[Term, ...]) -> Tensor:
        return self._batch.stacked(terms)[:, self._rows]


def _predictions(batch: TaskBatch) -> Tensor:
    return batch.raw_predictions.double()


def _labels(batch: TaskBatch) -> Tensor:
    return batch.raw_labels.double()


def _weights(batch: TaskBatch) -> Tensor:
    return batch.weights_or_ones.double()


def _sums(batch: TaskBatch) -> Tensor:
    """Return sums of weight, and of weight times label, prediction, squared and absolute error: one pass."""
    return weighted_sums(batch.raw_predictions, batch.raw_labels, batch.raw_weights)  # type: ignore[no-any-return]


def _label_sums(batch: TaskBatch) -> Tensor:
    """Return the first two of these, which predictions of several classes have as well."""
    labels, weights = batch.raw_labels, batch.raw_weights
    if batch.raw_predictions.shape == labels.shape:
        return batch.get(_sums)
    return weighted_sums(labels, labels, weights)  # type: ignore[no-any-return]


def weighted_num_samples(batch: TaskBatch) -> Tensor:
    """Return the sum of the weights."""
    return batch.get(_label_sums)[0]


def weighted_sum(batch: TaskBatch, values: Tensor) -> Tensor:
    """Return the sum of weight times value, of values ``(T, B)``."""
    return dot(batch.weights, values)


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the sum of products over samples."""
    total: Tensor = torch.linalg.vecdot(left, right)
    return total


def label_sum(batch: TaskBatch) -> Tensor:
    """Return the sum of weight times label."""
    return batch.get(_label_sums)[1]


def negative_sum(batch: TaskBatch) -> Tensor:
    """Return the sum of weight times 1 minus label."""
    return batch.get(weighted_num_samples) - batch.get(label_sum)


def prediction_sum(batch: TaskBatch) -> Tensor:
    """Return the sum of weight times prediction."""
    return batch.get(_sums)[2]


def squared_error_sum(batch: TaskBatch) -> Tensor:
    """Return the weighted sum of squared errors."""
    return batch.get(_sums)[3]


def absolute_error_sum(batch: TaskBatch) -> Tensor:
    """Return the weighted sum of absolute errors."""
    return batch.get(_sums)[4]


def errors(batch: TaskBatch) -> Tensor:
    """Return label minus prediction, of each sample."""
    return batch.labels - batch.predictions


class TaskInputs:
    """What a model put out for its tasks in one step; batches of them are made when asked for.

    Args:
        predictions: by task, ``(B,)`` each; or one ``(T, B)`` of all tasks in order.
        labels: alike.
        weights: alike; None: 1 each.
    """

    def __init__(
        self, predictions: OneOrByTask, labels: OneOrByTask, weights: OneOrByTask | None
    ) -> None:
        self.predictions = predictions
        self.labels = labels
        self.weights = weights
        # Rows know the batch of all tasks, and it does not know them: so it is freed when the update ends.
        self._batches: dict[tuple[str, ...], TaskBatch] = {}
        self._rows: dict[tuple[tuple[str, ...], int], TaskBatch] = {}

    @classmethod
    def joined(cls, inputs: Sequence[TaskInputs], tasks: tuple[str, ...]) -> TaskInputs:
        """Return several batches of some tasks as one."""
        weights: OneOrByTask | None = None
        if any(x.weights is not None for x in inputs):
            weights = _joined(
                "weights",
                [_ones_like(x.labels) if x.weights is None else x.weights for x in inputs],
                tasks,
            )
        return cls(
            _joined("predictions", [x.predictions for x in inputs], tasks),
            _joined("labels", [x.labels for x in inputs], tasks),
            weights,
        )

    def has(self, task: str) -> bool:
        """Return whether there are labels and predictions of a task."""
        return all(isinstance(x, Tensor) or task in x for x in (self.predictions, self.labels))

    def same_size(self, tasks: Sequence[str]) -> bool:
        """Return whether the tasks are all there and have batches of one size."""
        for x in (self.predictions, self.labels, self.weights):
            if isinstance(x, Mapping):
                shapes = [x[task].shape if task in x else None for task in tasks]
                if None in shapes or shapes.count(shapes[0]) != len(shapes):
                    return False
        return True

    def batch(self, tasks: tuple[str, ...]) -> TaskBatch:
        """Return the batch of some tasks.

        Raises:
            ValueError: if one is not there, or they differ in size.
        """
        found = self._batches.get(tasks)
        if found is None:
            predictions = _rows("predictions", self.predictions, tasks)
            labels = _rows("labels", self.labels, tasks)
            weights = None if self.weights is None else _rows("weights", self.weights, tasks)
            for name, x in (("predictions", predictions), ("weights", weights)):
                if x is not None and x.shape[:2] != labels.shape:
                    raise ValueError(
                        f"`{name}` of tasks {list(tasks)} should have one for each of {labels.shape[1]} "
                        f"labels. Received {x.shape[1]}."
                    )
            found = self._batches[tasks] = TaskBatch(predictions, labels, weights)
        return found

    def row(self, tasks: tuple[str, ...], task: int) -> TaskBatch:
        """Return the batch of one of some tasks, by its place, which takes its sums from that of all."""
        found = self._rows.get((tasks, task))
        if found is None:
            found = self._rows[tasks, task] = _TaskRow(self.batch(tasks), task)
        return found


def _joined(name: str, parts: Sequence[OneOrByTask], tasks: tuple[str, ...]) -> OneOrByTask:
    if any(isinstance(part, Tensor) for part in parts):
        return torch.cat([_rows(name, part, tasks) for part in parts], 1)
    by_task = [part for part in parts if isinstance(part, Mapping)]
    names = dict.fromkeys(task for part in by_task for task in part)
    return {
        task: torch.cat([_by_sample(name, part[task]) for part in by_task if task in part])
        for task in names
    }


def joined(parts: Sequence[Any]) -> Any:
    """Return what several batches have under one name as one: tensors by sample, mappings by name.

    Args:
        parts: tensors ``(B, ...)``, mappings of them, or what is not of samples.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: joined([part[name] for part in parts if name in part]) for name in names}
    return first


def _ones_like(labels: OneOrByTask) -> OneOrByTask:
    if isinstance(labels, Tensor):
        return torch.ones_like(labels)
    return {task: torch.ones_like(x) for task, x in labels.items()}


def _rows(name: str, values: OneOrByTask, tasks: tuple[str, ...]) -> Tensor:
    """Return one tensor with a row a task, in memory that nobody else writes to."""
    if isinstance(values, Tensor):
        return _task_rows(name, values, tasks).detach().clone()
    for task in tasks:
        if task not in values:
            raise ValueError(
                f"`{name}` should have all tasks {list(tasks)}. Received {sorted(values)}."
            )
    parts = [_by_sample(name, values[task].detach()) for task in tasks]
    if any(part.shape != parts[0].shape for part in parts):
        sizes = {task: part.shape[0] for task, part in zip(tasks, parts, strict=True)}
        raise ValueError(
            f"`{name}` of tasks that are computed together should have one size. Received {sizes}."
        )
    return torch.stack(parts)


def _task_rows(name: str, values: Tensor, tasks: tuple[str, ...]) -> Tensor:
    """Return a tensor of all tasks as a row a task."""
    if len(tasks) == 1 and (values.ndim == 1 or values.shape[1:] == (1,)):
        return values.reshape(1, -1)
    if values.ndim < 2 or values.shape[0] != len(tasks):
        raise ValueError(
            f"`{name}` should have a row for each of the tasks {list(tasks)}. Received shape "
            f"{tuple(values.shape)}."
        )
    return values


def _by_sample(name: str, values: Tensor) -> Tensor:
    """Return a tensor of one task as ``(B,)``; predictions of several classes stay ``(B, C)``."""
    classes = name == "predictions" and values.ndim > 1 and values.shape[1] != 1
    return values if classes else values.flatten()
