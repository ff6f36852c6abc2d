"""What a model learns: a target of the batches, with its loss and its metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from torchrec.datasets.utils import Batch
from torchrec.metrics import BinaryMetrics, Metrics

Loss = Callable[[Tensor, Tensor], Tensor]
Score = Callable[[Tensor], Tensor]

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "binary_cross_entropy": binary_cross_entropy_with_logits,
    "squared_error": mse_loss,
}
_SCORES: dict[str, Score] = {"identity": lambda outputs: outputs, "sigmoid": torch.sigmoid}
# What metrics call the mean of a loss, where they are given what the loss is given.
_MEASURED = {"binary_cross_entropy": "logloss", "squared_error": "mse"}


@dataclass(frozen=True)
class Task:
    """What is to be predicted of a sample, how wrong a prediction is, and what is measured.

    Args:
        target: which of the targets of a batch. Default ``"labels"``.
        loss: from outputs of the model and targets, ``(B,)`` each, to losses ``(B,)``, or to their
            mean, which is refused for batches with weights; or by name: ``"binary_cross_entropy"``
            (of logits) and ``"squared_error"``. Default ``"binary_cross_entropy"``.
        score: makes of the outputs what the metrics are given: ``"identity"``, ``"sigmoid"`` (logits
            to probabilities) or a function. Default ``"identity"``: `BinaryMetrics` takes logits.
        metrics: makes the metrics. Default `BinaryMetrics`.

    Raises:
        TypeError: if an argument is of another type; ``metrics`` of one without ``update`` and
            ``compute``.
        ValueError: if ``target`` is empty, there is no loss or score of that name, or `BinaryMetrics`
            would be given what are no logits: probabilities of ``"sigmoid"``, or outputs of
            ``"squared_error"``.

    Example:
        >>> from torchrec.metrics import RegressionMetrics
        >>> task = Task("seconds", loss="squared_error", metrics=RegressionMetrics)
        >>> task.loss_of(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), None, 2)
        tensor(2.)
        >>> weights = torch.tensor([3.0, 1.0])
        >>> task.loss_of(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), weights, 4)
        tensor(1.)
    """

    target: str = "labels"
    loss: str | Loss = "binary_cross_entropy"
    score: str | Score = "identity"
    metrics: Callable[[], Metrics] = BinaryMetrics

    def __post_init__(self) -> None:
        if not isinstance(self.target, str):
            raise TypeError(f"`target` should be a name. Received {self.target!r}.")
        if not self.target:
            raise ValueError("`target` should be a name. Received an empty one.")
        for name, value, choices in (("loss", self.loss, _LOSSES), ("score", self.score, _SCORES)):
            if not callable(value) and value not in tuple(choices):
                raise ValueError(
                    f"`{name}` of task '{self.target}' should be a function or one of "
                    f"{', '.join(choices)}. Received {value!r}."
                )
        made = self.metrics() if callable(self.metrics) else None
        if not hasattr(made, "update") or not hasattr(made, "compute"):
            raise TypeError(
                f"`metrics` of task '{self.target}' should make metrics when it is called, such as "
                f"the class BinaryMetrics. Received {self.metrics!r}."
            )
        if isinstance(made, BinaryMetrics):
            self._require_logits()

    def _require_logits(self) -> None:
        if self.score == "sigmoid":
            raise ValueError(
                f"`score` of task '{self.target}' should be 'identity' for BinaryMetrics, which takes "
                "logits. Received 'sigmoid'."
            )
        if self.loss == "squared_error" and self.score == "identity":
            raise ValueError(
                f"`metrics` of task '{self.target}' should take what 'squared_error' takes, as "
                "RegressionMetrics does. Received BinaryMetrics, which takes logits."
            )

    @property
    def measured_loss(self) -> str | None:
        """The name of the metric that is the mean of the loss; None if there is none for sure."""
        if self.score != "identity" or not isinstance(self.loss, str):
            return None
        return _MEASURED[self.loss]

    @property
    def is_cross_entropy(self) -> bool:
        """Whether the loss is that of labels, which can be smoothed."""
        return self.loss == "binary_cross_entropy"

    def target_of(self, batch: Batch) -> Tensor:
        """Return the target of a batch, ``(B,)``.

        Raises:
            ValueError: if the batch has none of that name.
        """
        if self.target not in batch.targets:
            raise ValueError(
                f"Batches should have the target '{self.target}'. Received targets "
                f"{sorted(batch.targets)}."
            )
        return batch.targets[self.target].reshape(-1)

    def check(self, batch: Batch, where: str) -> None:
        """Refuse targets and weights that nothing can be learned from.

        Targets should be 0 or 1 for `BinaryMetrics`, between them for cross-entropy, finite for
        squared errors; those for a loss and metrics of one's own may be anything. What is on another
        device than the CPU is left to the metrics, which do not wait for it.

        Args:
            batch: what a model is about to learn from.
            where: what to say of the batch, such as "step 3".

        Raises:
            ValueError: if so, or there are not as many as samples.
        """
        targets, weights = self.target_of(batch), batch.weights
        samples = len(batch.dense_features)
        for name, values in ((self.target, targets), ("weights", weights)):
            if values is not None and values.numel() != samples:
                raise ValueError(
                    f"`{name}` should be as many as the samples of the batch ({samples}). Received "
                    f"{values.numel()} in {where}."
                )
        if targets.device.type == "cpu":
            wanted, is_right = self._wanted
            _require_all(self.target, targets, wanted, is_right, where)
        if weights is not None and weights.device.type == "cpu":
            _require_all(
                "weights", weights.reshape(-1), "finite and not negative", _is_weight, where
            )

    @cached_property
    def _wanted(self) -> tuple[str, Callable[[Tensor], Tensor]]:
        """What targets should be, and the function that says which are."""
        if isinstance(self.metrics(), BinaryMetrics):
            return "0 or 1", _is_label
        if self.loss == "binary_cross_entropy":
            return "between 0 and 1", _is_probability
        if self.loss == "squared_error":
            return "finite", torch.isfinite
        return "anything", torch.ones_like

    def scores_of(self, outputs: Tensor) -> Tensor:
        """Return what the metrics are given."""
        score = _SCORES[self.score] if isinstance(self.score, str) else self.score
        return score(outputs)

    def loss_of(
        self, outputs: Tensor, targets: Tensor, weights: Tensor | None, total: Tensor | float
    ) -> Tensor:
        """Return the part that a batch has in the mean loss of all samples of some batches.

        Args:
            outputs: of the model, floating, ``(B,)``.
            targets: ``(B,)``.
            weights: ``(B,)``; None: 1 each.
            total: the weight of all these samples; of this batch alone for its mean, 1 for its sum.

        Raises:
            ValueError: if the loss is neither one a sample nor, without weights, their mean.
        """
        targets = targets.to(outputs.dtype)
        if (
            not outputs.numel()
        ):  # of a rank that has no sample of a step: tied to the model all the same
            return outputs.sum()
        if weights is None:
            losses = self._losses(outputs, targets, "mean")
            mean = losses.mean() if losses.dim() else losses
            return mean if outputs.numel() == total else mean * (outputs.numel() / total)
        losses = self._losses(outputs, targets, "none")
        if losses.shape != outputs.shape:
            raise ValueError(
                f"`loss` of task '{self.target}' should be one a sample, {tuple(outputs.shape)}, for "
                f"batches with weights. Received {tuple(losses.shape)}."
            )
        return losses @ weights.reshape(-1).to(losses.dtype) / total

    def _losses(self, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        if isinstance(self.loss, str):
            return _LOSSES[self.loss](outputs, targets, reduction=reduction)
        losses = self.loss(outputs, targets)
        if losses.dim() and losses.shape != outputs.shape:
            raise ValueError(
                f"`loss` of task '{self.target}' should be one a sample, {tuple(outputs.shape)}, or "
                f"their mean. Received {tuple(losses.shape)}."
            )
        return losses


def _is_label(values: Tensor) -> Tensor:
    return values.bool() == values  # NaN and others are True, which is 1


def _is_probability(values: Tensor) -> Tensor:
    return (values >= 0) & (values <= 1)


def _is_weight(values: Tensor) -> Tensor:
    return (values >= 0) & (values < math.inf)


def _require_all(
    name: str, values: Tensor, wanted: str, is_right: Callable[[Tensor], Tensor], where: str
) -> None:
    right = is_right(values)
    if not right.all():
        first = int(right.logical_not().nonzero()[0])
        raise ValueError(
            f"`{name}` should be {wanted}. Received {values[first].item()} in {where}, sample {first}."
        )


class Prediction(NamedTuple):
    """What a model says of a batch for a task, beside what is so: ``(B,)`` each.

    Attributes:
        task: the task.
        outputs: of the model, in float32 at least.
        targets: of the batch.
        weights: of the samples; None: 1 each.
    """

    task: Task
    outputs: Tensor
    targets: Tensor
    weights: Tensor | None

    def loss(self, total: Tensor | float, label_smoothing: float = 0.0) -> Tensor:
        """Return the part of this in the mean loss of all samples of some batches: `Task.loss_of`.

        Args:
            total: the weight of all these samples.
            label_smoothing: by which targets of a cross-entropy move towards 1/2. Default 0.
        """
        targets = self.targets
        if label_smoothing and self.task.is_cross_entropy:
            targets = targets * (1.0 - label_smoothing) + label_smoothing / 2.0
        return self.task.loss_of(self.outputs, targets, self.weights, total)

    def measure(self, metrics: Metrics) -> None:
        """Have metrics take it in."""
        metrics.update(self.task.scores_of(self.outputs.detach()), self.targets, self.weights)


def predictions_of(output: object, tasks: Sequence[Task], batch: Batch) -> list[Prediction]:
    """Return what a model says of a batch, for each task.

    Args:
        output: of the model: ``(B,)`` or ``(B, 1)`` for one task, ``(B, T)`` for several, in their
            order; or such tensors for one task by the names of their targets.
        tasks: the T tasks.
        batch: what the model was given.

    Raises:
        ValueError: if the model gives something else, or the batch has not all targets.
    """
    targets = [task.target_of(batch) for task in tasks]
    columns = _columns(output, tasks, targets[0].numel())
    return [
        Prediction(task, column, target, batch.weights)
        for task, column, target in zip(tasks, columns, targets, strict=True)
    ]


def _columns(output: object, tasks: Sequence[Task], samples: int) -> list[Tensor]:
    if isinstance(output, Mapping):
        missing = [task.target for task in tasks if task.target not in output]
        if missing:
            raise ValueError(
                f"The model should return an output for the target '{missing[0]}'. Received outputs "
                f"for {sorted(output)}."
            )
        return [_column(output[task.target], samples, f" for '{task.target}'") for task in tasks]
    if len(tasks) == 1:
        return [_column(output, samples, "")]
    shape = (samples, len(tasks))
    if not isinstance(output, Tensor) or output.shape != shape:
        raise ValueError(
            f"The model should return an output a sample and task, (B, T) = {shape}, or a dictionary "
            f"of them by target. Received {_shape(output)}."
        )
    return [_column(column, samples, "") for column in output.unbind(1)]


def _column(output: object, samples: int, what: str) -> Tensor:
    if not isinstance(output, Tensor) or output.numel() != samples:
        raise ValueError(
            f"The model should return a logit a sample{what}, (B,) or (B, 1), for dense and sparse "
            f"features of {samples} samples. Received {_shape(output)}."
        )
    output = output.reshape(-1)
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


def _shape(output: object) -> object:
    return tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
