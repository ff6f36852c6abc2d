"""Normalised entropy of each group of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics.metric_computation import MetricComputationReport, RecMetricComputation
from torchrec.metrics.metrics_namespace import MetricName, MetricNamespace
from torchrec.metrics.ne import ETA, compute_cross_entropy, compute_logloss, compute_ne
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.required import per_sample, required_input, sample_weights

_SUMS = ("cross_entropy_sum", "weighted_num_samples", "pos_labels", "neg_labels")


@dataclass
class GroupingKeyConfig:
    """What groups samples.

    Args:
        name: which of ``required_inputs`` has the group of each sample.
        num_groups: how many groups there are; their numbers are below. Default: 1.
        cast_keys_to_int: whether floating numbers of groups are taken. Default: False.
    """

    name: str
    num_groups: int = 1
    cast_keys_to_int: bool = False


GroupingKeys = str | Sequence[str] | Sequence[Mapping[str, Any]] | Sequence[GroupingKeyConfig]


class SegmentedNEMetricComputation(RecMetricComputation):
    """Sums of cross-entropy and of either class, of each group. See `RecMetricComputation`.

    Args:
        *args: see `RecMetricComputation`.
        include_logloss: report the mean cross-entropy as well. Default: False.
        num_groups: how many groups a key has that does not say so itself. Default: 1.
        grouping_keys: one name or several, or `GroupingKeyConfig`, also as mappings.
            Default: grouping_keys.
        cast_keys_to_int: whether keys that do not say so themselves can be floating. Default: False.
        **kwargs: see `RecMetricComputation`.
    """

    def __init__(
        self,
        *args: Any,
        include_logloss: bool = False,
        num_groups: int = 1,
        grouping_keys: GroupingKeys = "grouping_keys",
        cast_keys_to_int: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._include_logloss = include_logloss
        # Names of states and numbers say the key where there can be several.
        self._many = not isinstance(grouping_keys, str)
        self._keys = [
            _key(each, num_groups, cast_keys_to_int)
            for each in ([grouping_keys] if isinstance(grouping_keys, str) else grouping_keys)
        ]
        for key in self._keys:
            for name in self._state_names(key):
                zeros = torch.zeros(self._n_tasks, key.num_groups, dtype=torch.float64)
                self._add_state(name, zeros, add_window_state=True, persistent=True)

    @property
    def required_inputs(self) -> set[str]:
        """The grouping keys."""
        return {key.name for key in self._keys}

    def update(
        self,
        *,
        predictions: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        required_inputs: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add a batch to the sums of its groups, see `RecMetricComputation.update`.

        Args:
            predictions: ``(T, B)``.
            labels: ``(T, B)``.
            weights: ``(T, B)``; None: 1 each.
            required_inputs: has the grouping keys, ``(B,)`` or ``(T, B)``.
            **kwargs: of no effect.

        Raises:
            ValueError: if predictions or keys are missing, or keys are no numbers of groups.
        """
        if predictions is None:
            raise ValueError("`predictions` of segmented NE should be a tensor. Received None.")
        labels, weight = labels.double(), sample_weights(weights, labels, predictions)
        positives = weight * labels
        loss = compute_cross_entropy(labels, predictions, weight, ETA)
        terms = (loss, weight, positives, weight - positives)
        for key in self._keys:
            given = required_input(self, key.name, required_inputs)
            groups = self._groups(key, per_sample(self, key.name, given, labels))
            added = {
                name: torch.zeros_like(getattr(self, name)).scatter_add_(1, groups, term)
                for name, term in zip(self._state_names(key), terms, strict=True)
            }
            self._add_to_states(added, labels.shape[-1])

    def _groups(self, key: GroupingKeyConfig, values: Tensor) -> Tensor:
        if values.is_floating_point() and not key.cast_keys_to_int:
            raise ValueError(
                f"`{key.name}` should be integers, or `cast_keys_to_int` True. Received {values.dtype}."
            )
        groups = values.long()
        # A device would have to be waited for; there the sum itself fails.
        if groups.device.type == "cpu":
            outside = groups[(groups < 0) | (groups >= key.num_groups)]
            if len(outside):
                raise ValueError(
                    f"`{key.name}` should be from 0 to {key.num_groups - 1} (`num_groups` - 1). Received "
                    f"{int(outside[0])}."
                )
        return groups

    def _state_names(self, key: GroupingKeyConfig) -> list[str]:
        prefix = f"{key.name}_" if self._many else ""
        return [f"{prefix}{name}" for name in _SUMS]

    def _compute(self) -> list[MetricComputationReport]:
        reports = []
        for key in self._keys:
            suffix = f"@{key.name}" if self._many else ""
            for prefix, (loss, weight, positives, negatives) in self._by_prefix(
                *self._state_names(key)
            ):
                ne = compute_ne(loss, weight, positives, negatives, ETA)
                values = {MetricName.SEGMENTED_NE: ne}
                if self._include_logloss:
                    values[MetricName.LOG_LOSS] = compute_logloss(loss, positives, negatives, ETA)
                reports += [
                    MetricComputationReport(name, prefix, number, f"_{i}{suffix}")
                    for name, value in values.items()
                    for i, number in enumerate(value.unbind(-1))
                ]
        return reports


def _key(
    key: str | Mapping[str, Any] | GroupingKeyConfig, num_groups: int, cast_keys_to_int: bool
) -> GroupingKeyConfig:
    if isinstance(key, GroupingKeyConfig):
        return key
    if isinstance(key, str):
        return GroupingKeyConfig(key, num_groups, cast_keys_to_int)
    unknown = set(key) - {"name", "num_groups", "cast_keys_to_int"}
    if "name" not in key or unknown:
        raise ValueError(
            "`grouping_keys` should be mappings with name, num_groups and cast_keys_to_int. Received "
            f"{sorted(key)}."
        )
    return GroupingKeyConfig(
        key["name"],
        key.get("num_groups", num_groups),
        key.get("cast_keys_to_int", cast_keys_to_int),
    )


class SegmentedNEMetric(RecMetric):
    """Normalised entropy of each group. See `SegmentedNEMetricComputation` and `RecMetric`."""

    _namespace = MetricNamespace.SEGMENTED_NE
    _computation_class = SegmentedNEMetricComputation
