"""Metrics of the last samples themselves, such as the area under a curve."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport, RecMetricComputation
from torchrec.metrics.metrics_namespace import MetricNameBase, MetricPrefix
from torchrec.metrics.required import per_sample, required_input
from torchrec.metrics.task_batch import TaskBatch


class Samples(Mapping[str, Tensor]):
    """What is kept of samples by name, ``(T, N)`` each, joined when it is asked for.

    Args:
        parts: by name, what batches brought.
        rows: by name, how many rows each has.
    """

    def __init__(self, parts: Mapping[str, list[Tensor]], rows: Mapping[str, int]) -> None:
        self._parts = parts
        self._rows = rows
        self._joined: dict[str, Tensor] = {}

    def parts(self, name: str) -> list[Tensor]:
        """Return the parts as batches brought them; one empty part if there are none."""
        return self._parts[name] or [torch.empty(self._rows[name], 0)]

    def __getitem__(self, name: str) -> Tensor:
        """Return all parts as one."""
        if name not in self._joined:
            self._joined[name] = torch.cat(self.parts(name), -1)
        return self._joined[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._parts)

    def __len__(self) -> int:
        """Return how many names there are."""
        return len(self._parts)


class SampleMetricComputation(RecMetricComputation):
    """A metric of the samples in the window, which are kept as they came: exact, in bounded memory.

    A metric says what its numbers are of them, by `values`. Samples are never saved: after a restart the
    window begins anew.

    Args:
        *args: see `RecMetricComputation`.
        extra_inputs: what is kept beside predictions, labels and weights: names of ``required_inputs``.
            Default: nothing.
        **kwargs: see `RecMetricComputation`.
    """

    takes_batch: ClassVar[bool] = True

    def __init__(self, *args: Any, extra_inputs: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._extra_inputs = extra_inputs
        self._sample_names = ("predictions", "labels", "weights", *extra_inputs)
        for name in self._sample_names:
            self._add_state(name, [], False, dist_reduce_fx="cat")
        self._count = 0

    @property
    def required_inputs(self) -> set[str]:
        """What is asked of ``required_inputs`` in an update."""
        return set(self._extra_inputs)

    @abstractmethod
    def values(self, samples: Samples) -> Mapping[MetricNameBase, Tensor]:
        """Return numbers ``(T,)`` by name.

        Args:
            samples: ``predictions``, ``labels`` and ``weights``, ``(T, N)`` each, and what else is kept,
                ``(1, N)``; N may be 0.
        """

    def update(
        self,
        *,
        predictions: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        batch: TaskBatch | None = None,
        required_inputs: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the samples of a batch in, and let the oldest go, see `RecMetricComputation.update`.

        Args:
            predictions: ``(T, B)``.
            labels: ``(T, B)``.
            weights: ``(T, B)``; None: 1 each.
            batch: whose memory the tensors are; if None they are copied.
            required_inputs: other outputs by name, ``(B,)`` each.
            **kwargs: of no effect.

        Raises:
            ValueError: if an output that the metric asks for is not there, or not of as many samples.
        """
        if predictions is None:
            raise ValueError(
                f"`predictions` of {type(self).__name__} should be a tensor. Received None."
            )
        samples = [predictions, labels, torch.ones_like(labels) if weights is None else weights]
        if batch is None:
            samples = [x.detach().clone() for x in samples]
        for name in self._extra_inputs:
            values = required_input(self, name, required_inputs).clone().reshape(1, -1)
            samples.append(per_sample(self, name, values, labels[:1]))
        for name, x in zip(self._sample_names, samples, strict=True):
            self._list(name).append(x)
        self._count += labels.shape[-1]
        self._drop(self._count - self._window_size)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._count = 0

    def _list(self, name: str) -> list[Tensor]:
        found: list[Tensor] = getattr(self, name)
        return found

    def _drop(self, excess: int) -> None:
        """Let the oldest samples go."""
        if excess <= 0:
            return
        self._count -= excess
        gone: list[list[Tensor]] = []
        for name in self._sample_names:
            parts = self._list(name)
            left = excess
            gone.append([])
            while parts and left >= parts[0].shape[-1]:
                left -= parts[0].shape[-1]
                gone[-1].append(parts.pop(0))
            if left:
                gone[-1].append(parts[0][..., :left])
                # A copy, so that the part that is gone is given back.
                parts[0] = parts[0][..., left:].clone()
        for predictions, labels, weights, *_ in zip(*gone, strict=True):
            self._passed(predictions, labels, weights)

    def _passed(self, predictions: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Take note of samples that leave the window, ``(T, N)`` each; they are forgotten by default."""

    def _compute(self) -> list[MetricComputationReport]:
        names = self._sample_names
        rows = {name: 1 if name in self._extra_inputs else self._n_tasks for name in names}
        samples = Samples({name: self._list(name) for name in names}, rows)
        return [
            MetricComputationReport(name, MetricPrefix.WINDOW, value)
            for name, value in self.values(samples).items()
        ]
