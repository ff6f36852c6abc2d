"""Normalised entropy in which every sample counts once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.ne import ETA, entropy_values
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import TaskBatch, Term
from torchrec.ops.metrics import cross_entropy_sums


def unweighted_cross_entropy_sum(batch: TaskBatch, eta: float) -> Tensor:
    """Return the sum of cross-entropies without weights, in bits."""
    return cross_entropy_sums(  # type: ignore[no-any-return]
        batch.raw_predictions, batch.raw_labels, None, eta
    )


def num_samples(batch: TaskBatch) -> Tensor:
    """Return how many samples there are."""
    return batch.labels.new_full((len(batch.labels),), batch.size)


def unweighted_label_sum(batch: TaskBatch) -> Tensor:
    """Return the sum of labels."""
    return batch.labels.sum(-1)


def unweighted_negative_sum(batch: TaskBatch) -> Tensor:
    """Return the sum of 1 minus label."""
    return (1.0 - batch.labels).sum(-1)


class UnweightedNEMetricComputation(SumMetricComputation):
    """Sums of cross-entropy and of either class without weights. See `RecMetricComputation`."""

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return {
            "cross_entropy_sum": (unweighted_cross_entropy_sum, ETA),
            "weighted_num_samples": (num_samples,),
            "pos_labels": (unweighted_label_sum,),
            "neg_labels": (unweighted_negative_sum,),
        }

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        return entropy_values(
            MetricName.UNWEIGHTED_NE, sums, self._allow_missing_label_with_zero_weight
        )


class UnweightedNEMetric(RecMetric):
    """Normalised entropy in which weights are of no effect. See `RecMetric`."""

    _namespace = MetricNamespace.UNWEIGHTED_NE
    _computation_class = UnweightedNEMetricComputation
