"""The frame of metrics of tasks: what they take in, and the names of what they report."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchrec.metrics.metric_computation import (
    MetricComputationReport,
    RecMetricComputation,
    State,
    WindowBuffer,
    sync,
    synced,
)
from torchrec.metrics.metrics_config import RecComputeMode, RecTaskInfo
from torchrec.metrics.metrics_namespace import (
    MetricNamespaceBase,
    compose_customized_metric_key,
    compose_metric_namespace,
)
from torchrec.metrics.task_batch import OneOrByTask, TaskBatch, TaskInputs, joined

__all__ = [
    "MetricComputationReport",
    "RecMetric",
    "RecMetricComputation",
    "RecMetricException",
    "RecMetricList",
    "WindowBuffer",
]


class RecMetricException(Exception):  # noqa: N818 (the name is the API's)
    """Something is wrong with how metrics are set up."""


class RecMetric(nn.Module, ABC):
    """A metric of some tasks.

    A metric of your own names its namespace and its computation.

    Args:
        world_size: how many ranks there are.
        my_rank: the rank of this process.
        batch_size: samples of one rank in a step.
        tasks: the tasks, T.
        compute_mode: how they are held. Default: each by itself.
        window_size: over how many samples of all ranks the window is. Default: 100.
        fused_update_limit: join this many batches before the update. Default: 0, none.
        compute_on_all_ranks: report on all ranks, and not on the first alone. Default: False.
        should_validate_update: report 0 for a task until a batch came in which a sample has a weight.
        process_group: the ranks to compute over. Default: all.
        **kwargs: what else the computation takes; ``should_clone_update_inputs``, whether batches that
            wait to be joined are copied.

    Raises:
        ValueError: if fused tasks should join batches, or two tasks have one name.

    Example:
        >>> from torchrec.metrics.ne import NEMetric
        >>> metric = NEMetric(
        ...     world_size=1, my_rank=0, batch_size=2, tasks=[RecTaskInfo(name="click")]
        ... )
        >>> metric.update(
        ...     predictions={"click": torch.tensor([0.5, 0.5])},
        ...     labels={"click": torch.tensor([0.0, 1.0])},
        ...     weights=None,
        ... )
        >>> metric.compute()["ne-click|lifetime_ne"]
        tensor([1.], dtype=torch.float64)
    """

    _computation_class: type[RecMetricComputation]
    _namespace: MetricNamespaceBase

    PREDICTIONS: ClassVar[str] = "predictions"
    LABELS: ClassVar[str] = "labels"
    WEIGHTS: ClassVar[str] = "weights"

    def __init__(
        self,
        world_size: int,
        my_rank: int,
        batch_size: int,
        tasks: list[RecTaskInfo],
        compute_mode: RecComputeMode = RecComputeMode.UNFUSED_TASKS_COMPUTATION,
        window_size: int = 100,
        fused_update_limit: int = 0,
        compute_on_all_ranks: bool = False,
        should_validate_update: bool = False,
        process_group: dist.ProcessGroup | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self._fused = compute_mode != RecComputeMode.UNFUSED_TASKS_COMPUTATION
        if self._fused and fused_update_limit > 0:
            raise ValueError(
                "`fused_update_limit` should be 0 where tasks are fused. Received "
                f"{fused_update_limit} and {compute_mode}."
            )
        self._world_size = world_size
        self._my_rank = my_rank
        self._batch_size = batch_size
        self._tasks = list(tasks)
        self._names = tuple(task.name for task in tasks)
        if len(set(self._names)) != len(self._names):
            raise ValueError(
                f"`tasks` of metric '{self._namespace}' should have different names. Received {list(self._names)}."
            )
        self._namespaces = [compose_metric_namespace(self._namespace, name) for name in self._names]
        self._compute_mode = compute_mode
        self._window_size = -(-window_size // world_size)
        self._fused_update_limit = fused_update_limit
        self._compute_on_all_ranks = compute_on_all_ranks
        self._should_validate_update = should_validate_update
        self._process_group = process_group
        self._should_clone_update_inputs = bool(kwargs.pop("should_clone_update_inputs", False))
        # Batches that wait to be joined, and the names of what else the metric asks of them.
        self._waiting: list[tuple[TaskInputs, dict[str, Any]]] = []
        self._metrics_computations = nn.ModuleList(
            self._computation_class(
                my_rank,
                batch_size,
                count,
                self._window_size,
                compute_on_all_ranks,
                should_validate_update,
                compute_mode,
                process_group,
                **self._get_task_kwargs(of),
                **kwargs,
            )
            for of, count in self._groups()
        )
        self._required_inputs: set[str] = set()
        for (of, _), computation in zip(self._groups(), self.computations(), strict=True):
            self._required_inputs |= (
                self._get_task_required_inputs(of) | computation.required_inputs
            )

    def _groups(self) -> list[tuple[RecTaskInfo | list[RecTaskInfo], int]]:
        if self._fused:
            return [(self._tasks, len(self._tasks))]
        return [(task, 1) for task in self._tasks]

    def _get_task_kwargs(self, task_config: RecTaskInfo | list[RecTaskInfo]) -> dict[str, Any]:
        """Return what the computation of a task (or of all of them) takes; nothing by default."""
        return {}

    def _get_task_required_inputs(self, task_config: RecTaskInfo | list[RecTaskInfo]) -> set[str]:
        """Return what a task asks for beside labels, predictions and weights; nothing by default."""
        return set()

    def get_required_inputs(self) -> set[str]:
        """Return the outputs of the model that the metric asks for beside those of its tasks."""
        return self._required_inputs

    def computations(self) -> list[RecMetricComputation]:
        """Return what holds the states: one for all tasks, or one for each."""
        return list(self._metrics_computations)  # type: ignore[arg-type]

    def clone_update_inputs(
        self,
        predictions: OneOrByTask,
        labels: OneOrByTask,
        weights: OneOrByTask | None,
        **kwargs: Any,
    ) -> tuple[OneOrByTask, OneOrByTask, OneOrByTask | None, dict[str, Any]]:
        """Return copies of what `update` takes."""
        return (
            _cloned(predictions),
            _cloned(labels),
            None if weights is None else _cloned(weights),
            {name: _cloned(value) for name, value in kwargs.items()},
        )

    def update(
        self,
        *,
        predictions: OneOrByTask,
        labels: OneOrByTask,
        weights: OneOrByTask | None,
        **kwargs: Any,
    ) -> None:
        """Take a batch in.

        Args:
            predictions: by task, ``(B,)`` each; or ``(T, B)``.
            labels: alike.
            weights: alike; None: 1 each.
            **kwargs: what else the computation asks for; ``required_inputs`` has other outputs by name.

        Raises:
            ValueError: if tasks that are fused are missing, or differ in size.
        """
        if self._fused_update_limit > 0 and self._should_clone_update_inputs:
            predictions, labels, weights, kwargs = self.clone_update_inputs(
                predictions, labels, weights, **kwargs
            )
        self.take(TaskInputs(predictions, labels, weights), kwargs)

    def take(self, inputs: TaskInputs, kwargs: dict[str, Any]) -> None:
        """Take a batch in that other metrics may share, now or when enough of them wait."""
        if self._fused_update_limit <= 0:
            self._update(inputs, kwargs)
            return
        self._waiting.append((inputs, kwargs))
        if len(self._waiting) >= self._fused_update_limit:
            self.flush()

    def flush(self) -> None:
        """Take in the batches that wait."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            inputs, kwargs = zip(*waiting, strict=True)
            self._update(TaskInputs.joined(inputs, self._names), joined(kwargs))

    def _update(self, inputs: TaskInputs, kwargs: dict[str, Any]) -> None:
        computations = self.computations()
        if any(computation.is_synced for computation in computations):
            raise RecMetricException(
                f"`unsync` of metric '{self._namespace}' should be called before an update, which would be "
                "lost. Its states are those of all ranks."
            )
        if self._fused:
            if not any(inputs.has(name) for name in self._names):
                # None of the tasks has samples in this batch.
                return
            batch = inputs.batch(self._names)
            if self._should_validate_update:
                computations[0].note_valid(batch.get(_weighted))
            _update_computation(computations[0], batch, kwargs)
            return
        same_size = inputs.same_size(self._names)
        for i, (name, computation) in enumerate(zip(self._names, computations, strict=True)):
            if same_size:
                batch = inputs.row(self._names, i)
            elif inputs.has(name):
                batch = inputs.batch((name,))
            else:
                continue
            if self._should_validate_update:
                weighted = batch.get(_weighted)
                computation.note_valid(weighted)
                if not weighted.item():
                    continue
            _update_computation(computation, batch, kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Return the numbers of all ranks by name: on the first, or on all if that was asked for."""
        self.flush()
        with synced(self.computations(), self._process_group):
            return self.reports() if self.reports_here else {}

    def local_compute(self) -> dict[str, Tensor]:
        """Return the numbers of this rank alone, by names that say so."""
        self.flush()
        return self.reports("local_")

    @property
    def namespace(self) -> MetricNamespaceBase:
        """What the names of the metric begin with."""
        return self._namespace

    def states(self) -> dict[str, dict[str, State]]:
        """Return copies of all states as they stand, by task and name.

        Where tasks are fused, all of them are under the name of the first.
        """
        return {
            task: {name: _cloned(state) for name, state in computation.states().items()}
            for task, computation in zip(self._names, self.computations(), strict=False)
        }

    def load_states(self, states: Mapping[str, Mapping[str, State]]) -> None:
        """Put states of all ranks in the place of this rank's, until `unsync`.

        Args:
            states: as `states` returns them.

        Raises:
            ValueError: if there are none of a task.
        """
        for task, computation in zip(self._names, self.computations(), strict=False):
            if task not in states:
                raise ValueError(
                    f"`states` of metric '{self._namespace}' should have task '{task}'. Received "
                    f"{sorted(states)}."
                )
            computation.load_states({name: _cloned(x) for name, x in states[task].items()})

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The ranks to compute over; None: all."""
        return self._process_group

    @property
    def reports_here(self) -> bool:
        """Whether this rank reports what is computed of all."""
        return self._my_rank == 0 or self._compute_on_all_ranks

    def reports(self, scope: str = "") -> dict[str, Tensor]:
        """Return the numbers of the states as they stand, by names that begin with a scope."""
        computations = self.computations()
        found: dict[str, Tensor] = {}
        if not self._fused:
            for namespace, computation in zip(self._namespaces, computations, strict=True):
                for report in computation.local_compute():
                    found[_key(namespace, scope, report)] = report.value
            return found
        for report in computations[0].local_compute():
            for namespace, value in zip(self._namespaces, report.value, strict=True):
                found[_key(namespace, scope, report)] = value
        return found

    def sync(self) -> None:
        """Put the states of all ranks together in the place of this rank's, until `unsync`."""
        self.flush()
        sync(self.computations(), self._process_group)

    def unsync(self) -> None:
        """Put the states of this rank back."""
        for computation in self.computations():
            computation.unsync()

    def reset(self) -> None:
        """Forget everything."""
        self._waiting.clear()
        for computation in self.computations():
            computation.reset()

    def get_memory_usage(self) -> dict[Tensor, int]:
        """Return the bytes of each tensor that the metric holds."""
        return {
            tensor: tensor.numel() * tensor.element_size()
            for computation in self.computations()
            for state in computation.states().values()
            for tensor in (state if isinstance(state, list) else [state])
        }

    def state_dict(  # type: ignore[override]
        self,
        destination: dict[str, Tensor] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Tensor]:
        """Return what is saved, with all batches taken in.

        Args:
            destination: where to put it. Default: a new one.
            prefix: what names begin with. Default: nothing.
            keep_vars: of no effect, for states have no gradients. Default: False.
        """
        self.flush()
        if destination is None:
            return super().state_dict(prefix=prefix, keep_vars=keep_vars)
        return super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)


class RecMetricList(nn.Module):
    """Several metrics that see the same batches.

    What more than one of them asks of a batch is worked out once, and the states of all of them travel
    between ranks together.

    Args:
        rec_metrics: the metrics.
    """

    def __init__(self, rec_metrics: list[RecMetric]) -> None:
        super().__init__()
        self.rec_metrics = nn.ModuleList(rec_metrics)
        required = {name for metric in rec_metrics for name in metric.get_required_inputs()}
        self.required_inputs = sorted(required) or None

    def __len__(self) -> int:
        """Return how many metrics there are."""
        return len(self.rec_metrics)

    def __getitem__(self, idx: int) -> nn.Module:
        """Return a metric."""
        return self.rec_metrics[idx]

    def metrics(self) -> list[RecMetric]:
        """Return the metrics."""
        return list(self.rec_metrics)  # type: ignore[arg-type]

    def get_required_inputs(self) -> list[str] | None:
        """Return what the metrics ask for beside labels, predictions and weights; None: nothing."""
        return self.required_inputs

    def update(
        self,
        *,
        predictions: OneOrByTask,
        labels: OneOrByTask,
        weights: OneOrByTask | None,
        **kwargs: Any,
    ) -> None:
        """Take a batch in, see `RecMetric.update`."""
        inputs = TaskInputs(predictions, labels, weights)
        for metric in self.metrics():
            metric.take(inputs, kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Return the numbers of all ranks by name."""
        with self.joined():
            return _merged(metric.reports() for metric in self.metrics() if metric.reports_here)

    def local_compute(self) -> dict[str, Tensor]:
        """Return the numbers of this rank alone, by names that say so."""
        return _merged(metric.local_compute() for metric in self.metrics())

    def sync(self) -> None:
        """Put the states of all ranks together in the place of this rank's, until `unsync`."""
        for metric in self.metrics():
            metric.flush()
        sync(self._computations(), self._process_group())

    def unsync(self) -> None:
        """Put the states of this rank back."""
        for metric in self.metrics():
            metric.unsync()

    def reset(self) -> None:
        """Forget everything."""
        for metric in self.metrics():
            metric.reset()

    @contextmanager
    def joined(self, group: dist.ProcessGroup | None = None) -> Iterator[None]:
        """Put the states of all ranks in the place of this rank's for as long as the block lasts.

        Args:
            group: the ranks. Default: those of the metrics.
        """
        for metric in self.metrics():
            metric.flush()
        with synced(self._computations(), group if group is not None else self._process_group()):
            yield

    def _computations(self) -> list[RecMetricComputation]:
        return [part for metric in self.metrics() for part in metric.computations()]

    def _process_group(self) -> dist.ProcessGroup | None:
        groups = [metric.process_group for metric in self.metrics()]
        if any(group is not groups[0] for group in groups):
            raise RecMetricException(
                "`process_group` should be one for all metrics of a list. Received several."
            )
        return groups[0] if groups else None


def _key(namespace: str, scope: str, report: MetricComputationReport) -> str:
    name = f"{scope}{report.metric_prefix}{report.name}"
    return compose_customized_metric_key(namespace, name, report.description)


def _merged(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for part in parts:
        twice = sorted(found.keys() & part.keys())
        if twice:
            raise RecMetricException(
                f"Metrics of a list should report by different names. Received '{twice[0]}' twice; "
                "`description` of tensor_weighted_avg tells it from weighted_avg."
            )
        found.update(part)
    return found


def _weighted(batch: TaskBatch) -> Tensor:
    """Return which tasks have a sample that weighs something."""
    if batch.raw_weights is None:
        return batch.raw_labels.new_full((len(batch.raw_labels),), batch.size > 0, dtype=torch.bool)
    return (batch.raw_weights != 0).any(-1)


def _update_computation(
    computation: RecMetricComputation, batch: TaskBatch, kwargs: dict[str, Any]
) -> None:
    if computation.takes_batch:
        kwargs = {**kwargs, "batch": batch}
    computation.update(
        predictions=batch.raw_predictions,
        labels=batch.raw_labels,
        weights=batch.raw_weights if computation.takes_batch else batch.weights_or_ones,
        **kwargs,
    )


def _cloned(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.detach().clone()
    if isinstance(values, Mapping):
        return {name: _cloned(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_cloned(value) for value in values]
    return values
