"""What a model learns: a target of the batches, with its loss and its metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss, mse_loss

from torchrec.datasets.utils import Batch
from torchrec.metrics import BinaryMetrics, GroupedMetrics, Metrics
from torchrec.training.losses import LOSSES, pairwise

Loss = Callable[[Tensor, Tensor], Tensor]
Score = Callable[[Tensor], Tensor]

# Of PyTorch, which makes their mean in one pass; and of our own.
_REDUCED: dict[str, Callable[..., Tensor]] = {
    "binary_cross_entropy": binary_cross_entropy_with_logits,
    "squared_error": mse_loss,
    "huber": huber_loss,
}
_NAMES = (*_REDUCED, *LOSSES, "pairwise")
_CLASSES = ("cross_entropy", "continuation")
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
            and ``"focal"`` (of logits), ``"squared_error"`` and ``"huber"`` (beyond errors of 1 linear),
            ``"pairwise"`` within ``group``, ``"cross_entropy"`` (of a logit a class) and
            ``"continuation"`` (of classes in order): `torchrec.training.losses`. Default
            ``"binary_cross_entropy"``.
        score: makes of the outputs what the metrics are given: ``"identity"``, ``"sigmoid"`` (logits
            to probabilities) or a function. Default ``"identity"``: `BinaryMetrics` takes logits.
        metrics: makes the metrics. Default `BinaryMetrics`.
        width: how many numbers of the model's output it takes, ``(B, width)`` where there are more than
            one. Default 1.
        weight: of its loss among those of several tasks. Default 1.
        given: another target: samples count only where that is not 0, in losses and metrics. The loss
            is still divided by all samples, so that those of both tasks add up to the likelihood of
            both targets. Default: all samples count.
        group: which of the groups of a batch ``"pairwise"`` compares within. Default none.
        class_weights: how much samples count in the loss by their target, which is 0, 1...; metrics go
            without. Probabilities are then those of data in which the classes have these weights.
            Default: all alike.
        negatives: share of the samples with target 0 that training data have kept, at random. The loss
            is that of outputs minus its logarithm, the logit among these data, so that the outputs are
            those of all data (He et al., https://doi.org/10.1145/2648584.2648589, equation 4).
            Default 1.
        group_metrics: what evaluations measure besides, within the groups of the batches, such as
            ``("gauc(user)", "ndcg@10(user)")``: `torchrec.metrics.grouped`. Default: nothing.

    Raises:
        TypeError: if an argument is of another type; ``metrics`` of one without ``update`` and
            ``compute``.
        ValueError: if ``target`` is empty, there is no loss, score or metric of that name, or `BinaryMetrics`
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
    width: int = 1
    weight: float = 1.0
    given: str | None = None
    group: str | None = None
    class_weights: tuple[float, ...] | None = None
    negatives: float = 1.0
    group_metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.target, str):
            raise TypeError(f"`target` should be a name. Received {self.target!r}.")
        if not self.target:
            raise ValueError("`target` should be a name. Received an empty one.")
        for name, value, choices in (("loss", self.loss, _NAMES), ("score", self.score, _SCORES)):
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
        GroupedMetrics(self.group_metrics)  # refuses what is none
        self._check_options()

    def _check_options(self) -> None:
        """Refuse what would have no effect, or none that is meant."""
        where = f"of task '{self.target}'"
        if (self.loss == "pairwise") != (self.group is not None):
            raise ValueError(
                f"`group` {where} should be given for the loss 'pairwise', and for no other. Received "
                f"{self.group!r} for {self.loss!r}."
            )
        if self.given == self.target:
            raise ValueError(f"`given` {where} should be another target. Received '{self.given}'.")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"`weight` {where} should be above 0. Received {self.weight}.")
        if not 0 < self.negatives <= 1:
            raise ValueError(
                f"`negatives` {where} should be a share above 0 and at most 1. Received "
                f"{self.negatives}."
            )
        if self.negatives < 1 and not self.is_cross_entropy:
            raise ValueError(
                f"`negatives` {where} should be given for the loss 'binary_cross_entropy', whose "
                f"probabilities can be corrected. Received {self.negatives} for {self.loss!r}."
            )
        for weight in self.class_weights or ():
            if not 0 <= weight < math.inf:
                raise ValueError(
                    f"`class_weights` {where} should be finite and not negative. Received {weight}."
                )

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
        if self.weight != 1 or self.given is not None or self.class_weights is not None:
            return None
        return _MEASURED.get(self.loss)

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

    def weights_of(self, batch: Batch) -> Tensor | None:
        """Return how much the samples of a batch count, ``(B,)``; None: 1 each.

        Raises:
            ValueError: if the batch has not the target that says which do.
        """
        if self.given is None:
            return batch.weights
        if self.given not in batch.targets:
            raise ValueError(
                f"Batches should have the target '{self.given}', which says where task '{self.target}' "
                f"counts. Received targets {sorted(batch.targets)}."
            )
        counts = (batch.targets[self.given].reshape(-1) != 0).float()
        return counts if batch.weights is None else batch.weights.reshape(-1) * counts

    def groups_of(self, batch: Batch) -> Tensor | None:
        """Return the groups of a batch, ``(B,)``; None: the loss needs none.

        Raises:
            ValueError: if the batch has none of that name.
        """
        if self.group is None:
            return None
        if self.group not in batch.groups:
            raise ValueError(
                f"Batches should have the groups '{self.group}' for the loss of task '{self.target}'. "
                f"Received groups {sorted(batch.groups)}."
            )
        return batch.groups[self.group].reshape(-1)

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
        if self.loss in _CLASSES:
            classes = self.width + (self.loss == "continuation")
            return f"a class, 0 to {classes - 1}", lambda found: _is_class(found, classes)
        if self.loss in ("squared_error", "huber", "pairwise"):
            return "finite", torch.isfinite
        return "anything", torch.ones_like

    def scores_of(self, outputs: Tensor) -> Tensor:
        """Return what the metrics are given."""
        score = _SCORES[self.score] if isinstance(self.score, str) else self.score
        return score(outputs)

    def loss_of(
        self,
        outputs: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        total: Tensor | float,
        groups: Tensor | None = None,
    ) -> Tensor:
        """Return the part that a batch has in the mean loss of all samples of some batches.

        Args:
            outputs: of the model, floating, ``(B,)`` or ``(B, width)``.
            targets: ``(B,)``.
            weights: ``(B,)``; None: 1 each.
            total: the weight of all these samples; of this batch alone for its mean, 1 for its sum.
            groups: ``(B,)``, for the loss within groups. Default none.

        Raises:
            ValueError: if the loss is neither one a sample nor, without weights, their mean.
        """
        targets = targets.to(outputs.dtype)
        if (
            not outputs.numel()
        ):  # of a rank that has no sample of a step: tied to the model all the same
            return outputs.sum()
        if self.class_weights is not None:
            by_class = outputs.new_tensor(self.class_weights)[targets.long()]
            weights = by_class if weights is None else weights.reshape(-1) * by_class
        if weights is None:
            losses = self._losses(outputs, targets, "mean", groups)
            mean = losses.mean() if losses.dim() else losses
            return self._weighted(mean if len(outputs) == total else mean * (len(outputs) / total))
        losses = self._losses(outputs, targets, "none", groups)
        if losses.shape != targets.shape:
            raise ValueError(
                f"`loss` of task '{self.target}' should be one a sample, {tuple(targets.shape)}, for "
                f"batches with weights. Received {tuple(losses.shape)}."
            )
        return self._weighted(losses @ weights.reshape(-1).to(losses.dtype) / total)

    def _weighted(self, loss: Tensor) -> Tensor:
        return loss if self.weight == 1 else loss * self.weight

    def _losses(
        self, outputs: Tensor, targets: Tensor, reduction: str, groups: Tensor | None
    ) -> Tensor:
        if isinstance(self.loss, str):
            if self.loss in _REDUCED:
                return _REDUCED[self.loss](outputs, targets, reduction=reduction)
            if groups is not None:
                return pairwise(outputs, targets, groups)
            return LOSSES[self.loss](outputs, targets)
        losses = self.loss(outputs, targets)
        if losses.dim() and losses.shape != targets.shape:
            raise ValueError(
                f"`loss` of task '{self.target}' should be one a sample, {tuple(targets.shape)}, or "
                f"their mean. Received {tuple(losses.shape)}."
            )
        return losses


def _is_label(values: Tensor) -> Tensor:
    return values.bool() == values  # NaN and others are True, which is 1


def _is_class(values: Tensor, classes: int) -> Tensor:
    return (values >= 0) & (values < classes) & (values == values.floor())


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
        outputs: of the model, in float32 at least; ``(B, width)`` of a task that takes several.
        targets: of the batch.
        weights: of the samples; None: 1 each.
        groups: of the samples, where the loss needs them.
    """

    task: Task
    outputs: Tensor
    targets: Tensor
    weights: Tensor | None
    groups: Tensor | None = None

    def of_training(self) -> Prediction:
        """Return the same of training data, which may have kept only a share of the negatives."""
        if self.task.negatives == 1:
            return self
        return self._replace(outputs=self.outputs - math.log(self.task.negatives))

    def loss(self, total: Tensor | float, label_smoothing: float = 0.0) -> Tensor:
        """Return the part of this in the mean loss of all samples of some batches: `Task.loss_of`.

        Args:
            total: the weight of all these samples.
            label_smoothing: by which targets of a cross-entropy move towards 1/2. Default 0.
        """
        targets = self.targets
        if label_smoothing and self.task.is_cross_entropy:
            targets = targets * (1.0 - label_smoothing) + label_smoothing / 2.0
        return self.task.loss_of(self.outputs, targets, self.weights, total, self.groups)

    def measure(self, metrics: Metrics) -> None:
        """Have metrics take it in."""
        metrics.update(self.task.scores_of(self.outputs.detach()), self.targets, self.weights)


def predictions_of(output: object, tasks: Sequence[Task], batch: Batch) -> list[Prediction]:
    """Return what a model says of a batch, for each task.

    Args:
        output: of the model: ``(B,)`` or ``(B, 1)`` for one task, ``(B, sum of widths)`` for several,
            in their order; or such tensors for one task by the names of their targets.
        tasks: the T tasks.
        batch: what the model was given.

    Raises:
        ValueError: if the model gives something else, or the batch has not all targets.
    """
    targets = [task.target_of(batch) for task in tasks]
    columns = _columns(output, tasks, targets[0].numel())
    return [
        Prediction(task, column, target, task.weights_of(batch), task.groups_of(batch))
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
        return [
            _column(output[task.target], samples, task.width, f" for '{task.target}'")
            for task in tasks
        ]
    if len(tasks) == 1:
        return [_column(output, samples, tasks[0].width, "")]
    widths = [task.width for task in tasks]
    shape = (samples, sum(widths))
    if not isinstance(output, Tensor) or output.shape != shape:
        raise ValueError(
            f"The model should return an output a sample and task, (B, T) = {shape}, or a dictionary "
            f"of them by target. Received {_shape(output)}."
        )
    parts = zip(output.split(widths, dim=1), widths, strict=True)
    return [_column(part, samples, width, "") for part, width in parts]


def _column(output: object, samples: int, width: int, what: str) -> Tensor:
    if not isinstance(output, Tensor) or output.numel() != samples * width:
        each = "a logit a sample" if width == 1 else f"{width} numbers a sample"
        shape = "(B,) or (B, 1)" if width == 1 else f"(B, {width})"
        raise ValueError(
            f"The model should return {each}{what}, {shape}, for dense and sparse "
            f"features of {samples} samples. Received {_shape(output)}."
        )
    output = output.reshape(-1) if width == 1 else output.reshape(samples, width)
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


def _shape(output: object) -> object:
    return tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
