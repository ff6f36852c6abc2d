"""Metrics whose states are sums over samples: most of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import (
    MetricComputationReport,
    RecMetricComputation,
    State,
)
from torchrec.metrics.metrics_namespace import MetricNameBase, MetricPrefix
from torchrec.metrics.sliding_sum import SlidingSum
from torchrec.metrics.task_batch import TaskBatch, Term

_LIFETIME = "lifetime_sums"
_WINDOW = "window_sums"


class SumMetricComputation(RecMetricComputation):
    """A metric of sums: all of them, of all tasks, are one tensor ``(S, T)`` in float64.

    A metric says what its sums are of a batch, by `sums`, and what its numbers are of the sums, by
    `values`. Both are over all samples and over the window, in one call.

    Args:
        *args: see `RecMetricComputation`.
        **kwargs: see `RecMetricComputation`.

    Example:
        A mean of labels:

        >>> from torchrec.metrics.metrics_namespace import MetricName
        >>> from torchrec.metrics.task_batch import label_sum, weighted_num_samples
        >>> class MeanLabel(SumMetricComputation):
        ...     def sums(self):
        ...         return {"labels": (label_sum,), "samples": (weighted_num_samples,)}
        ...
        ...     def values(self, sums):
        ...         return {MetricName.LABEL_AVERAGE: sums["labels"] / sums["samples"]}
        >>> mean = MeanLabel(my_rank=0, batch_size=4, n_tasks=1, window_size=2)
        >>> for labels in (torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0]])):
        ...     mean.update(predictions=labels, labels=labels, weights=None)
        >>> [(str(x.metric_prefix), x.value) for x in mean.compute()]
        [('lifetime_', tensor([0.7500], dtype=torch.float64)), ('window_', tensor([0.5000], dtype=torch.float64))]
    """

    takes_batch: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        sums = self.sums()
        self._names = tuple(sums)
        self._terms = tuple(sums.values())
        shape = (len(sums), self._n_tasks)
        self._add_state(_LIFETIME, torch.zeros(shape, dtype=torch.float64), False)
        self._add_state(_WINDOW, torch.zeros(shape, dtype=torch.float64), False)
        self._window = SlidingSum(self._window_size)

    @abstractmethod
    def sums(self) -> Mapping[str, Term]:
        """Return what is summed, by the name of the state: ``(function, *arguments)``.

        A function takes a `TaskBatch` and the arguments, and returns ``(T,)``. It is one of a module, not
        made anew, so that metrics that sum the same share the work.
        """

    @abstractmethod
    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """Return numbers by name.

        Args:
            sums: by the names of `sums`; each is ``(2, T)``, or of any shape: apply the formula to each
                number by itself.
        """

    def update(
        self,
        *,
        predictions: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        batch: TaskBatch | None = None,
        **kwargs: Any,
    ) -> None:
        """Add a batch to the sums, see `RecMetricComputation.update`.

        Args:
            predictions: ``(T, B)``.
            labels: ``(T, B)``.
            weights: ``(T, B)``; None: 1 each.
            batch: the same, with what other metrics have worked out of it.
            **kwargs: of no effect.
        """
        if (
            batch is None
            or batch.raw_predictions is not predictions
            or batch.raw_labels is not labels
            or batch.raw_weights is not weights
        ):
            batch = TaskBatch(labels if predictions is None else predictions, labels, weights)
        added = batch.stacked(self._terms)
        lifetime: Tensor = getattr(self, _LIFETIME)
        lifetime.add_(added)
        self._window.append(added, batch.size)

    def state(self, name: str) -> Tensor:
        """Return a sum over all samples, ``(T,)``."""
        lifetime: Tensor = getattr(self, _LIFETIME)
        return lifetime[self._names.index(name)]

    def get_window_state(self, state_name: str) -> Tensor:
        """Return a sum over the window, ``(T,)``."""
        return self._window_sums()[self._names.index(state_name)]

    def states(self) -> dict[str, State]:
        """Return all sums by name, those over the window among them."""
        found = super().states()
        rows = zip(found.pop(_LIFETIME), found.pop(_WINDOW), strict=True)
        for name, (lifetime, window) in zip(self._names, rows, strict=True):
            found[name] = lifetime
            found[self.get_window_state_name(name)] = window
        return found

    def _packed_states(self) -> dict[str, State]:
        return {**super()._packed_states(), _WINDOW: self._window_sums()}

    def _set_states(self, states: Mapping[str, State]) -> None:
        packed = dict(states)
        if _LIFETIME not in packed:
            # By the names of the sums, as `states` returns them.
            windows = [self.get_window_state_name(name) for name in self._names]
            for kept, names in ((_LIFETIME, self._names), (_WINDOW, windows)):
                packed[kept] = torch.stack([_tensor(packed.pop(name)) for name in names])
        super()._set_states(packed)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._window.clear()

    def _window_sums(self) -> Tensor:
        state: Tensor = getattr(self, _WINDOW)
        if self.is_synced:
            return state
        total = self._window.total()
        return torch.zeros_like(state) if total is None else total

    def _compute(self) -> list[MetricComputationReport]:
        both = torch.stack((getattr(self, _LIFETIME), self._window_sums()), dim=1)
        values = self.values(dict(zip(self._names, both.unbind(), strict=True)))
        return [
            MetricComputationReport(name, prefix, number)
            for name, value in values.items()
            for prefix, number in zip(
                (MetricPrefix.LIFETIME, MetricPrefix.WINDOW), value, strict=True
            )
        ]

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        # Saved by the names that the API gives the sums; a window begins anew.
        super()._save_to_state_dict(destination, prefix, keep_vars)
        lifetime: Tensor = getattr(self, _LIFETIME)
        for name, row in zip(self._names, lifetime, strict=True):
            destination[prefix + name] = row

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        found = dict(state_dict)
        rows = {name: found.pop(prefix + name, None) for name in self._names}
        super()._load_from_state_dict(
            found, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        lifetime: Tensor = getattr(self, _LIFETIME)
        for row, (name, loaded) in zip(lifetime, rows.items(), strict=True):
            if loaded is None:
                missing_keys.append(prefix + name)
            elif loaded.shape != row.shape:
                error_msgs.append(
                    f"`{prefix}{name}` should have shape {tuple(row.shape)}. Received {tuple(loaded.shape)}."
                )
            else:
                row.copy_(loaded)
        self.carry(_LIFETIME)


def _tensor(state: State) -> Tensor:
    return state if isinstance(state, Tensor) else torch.cat(state, -1)
