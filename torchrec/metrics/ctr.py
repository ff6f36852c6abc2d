"""The share of positives."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchrec.metrics.metrics_namespace import MetricName, MetricNameBase, MetricNamespace
from torchrec.metrics.rec_metric import RecMetric
from torchrec.metrics.sum_metric import SumMetricComputation
from torchrec.metrics.task_batch import TaskBatch, Term, label_sum, weighted_num_samples
from torchrec.metrics.terms import ratio

CTR_NUM = "ctr_num"
CTR_DENOM = "ctr_denom"

_SUMS: dict[str, Term] = {CTR_NUM: (label_sum,), CTR_DENOM: (weighted_num_samples,)}


def compute_ctr(ctr_num: Tensor, ctr_denom: Tensor) -> Tensor:
    """Return the share of positives, 0 where no sample has a weight.

    Args:
        ctr_num: the sum of weight times label.
        ctr_denom: the sum of weights.

    Example:
        >>> compute_ctr(torch.tensor([1.0, 0.0]), torch.tensor([4.0, 0.0]))
        tensor([0.2500, 0.0000])
    """
    return ratio(ctr_num, ctr_denom)


def get_ctr_states(labels: Tensor, predictions: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Return what a batch adds to the sums: ``(T, B)`` each."""
    batch = TaskBatch(predictions, labels, weights)
    return {name: batch.get(*term) for name, term in _SUMS.items()}


class CTRMetricComputation(SumMetricComputation):
    """Sums of labels and of weights. See `RecMetricComputation`."""

    def sums(self) -> Mapping[str, Term]:
        """See `SumMetricComputation.sums`."""
        return _SUMS

    def values(self, sums: Mapping[str, Tensor]) -> Mapping[MetricNameBase, Tensor]:
        """See `SumMetricComputation.values`."""
        return {MetricName.CTR: compute_ctr(sums[CTR_NUM], sums[CTR_DENOM])}


class CTRMetric(RecMetric):
    """The share of positives, which is a click-through rate where they are clicks. See `RecMetric`."""

    _namespace = MetricNamespace.CTR
    _computation_class = CTRMetricComputation
