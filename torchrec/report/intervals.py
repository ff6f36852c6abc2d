"""How sure the metrics of some predictions are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torchrec.metrics import Interval, auc_estimates, bootstrap_interval
from torchrec.report.predictions import Predictions

Floats = NDArray[np.float64]


def metric_intervals(predictions: Predictions) -> dict[str, Interval]:
    """Return the metrics of some predictions, with intervals of 95 %."""
    labels, probabilities = predictions.labels, predictions.probabilities
    values = np.stack([predictions.losses, probabilities, labels], axis=1)
    return {
        "auc": auc_estimates(predictions.logits, labels).interval(),
        "logloss": bootstrap_interval(values, lambda means: means[..., 0]),
        "ne": bootstrap_interval(values, _normalised_entropy),
        "calibration": bootstrap_interval(values, lambda means: means[..., 1] / means[..., 2]),
    }


def _normalised_entropy(means: Floats) -> Floats:
    rate = means[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        found: Floats = means[..., 0] / entropy
    return found
