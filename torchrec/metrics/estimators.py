"""The metrics of tasks as estimates: what `BinaryMetrics` and its kin say of a stream, of samples that are at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from torchrec.metrics.delong import auc_estimate
from torchrec.metrics.estimate import Estimate, mean_estimate

Floats = NDArray[np.float64]
Estimator = Callable[[Floats, Floats, Floats | None], Estimate]
"""From scores ``(N,)`` or ``(N, K)``, labels ``(N,)`` and weights ``(N,)``, or None, to the estimate of a metric."""

_LEAST = float(np.finfo(np.float32).tiny)  # probability, as in `MulticlassMetrics`


def sigmoid(logits: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


def log_losses(logits: Floats, labels: Floats) -> Floats:
    """Return the log loss of each sample of a yes or no.

    Example:
        >>> log_losses(np.array([0.0, 2.0]), np.array([1.0, 0.0])).round(4).tolist()
        [0.6931, 2.1269]
    """
    signed = np.where(labels > 0, -logits, logits)
    return np.maximum(signed, 0) + np.log1p(np.exp(-np.abs(logits)))


def _logloss(logits: Floats, labels: Floats, weights: Floats | None) -> Estimate:
    return mean_estimate(log_losses(logits, labels), weights=weights)


def _ne(logits: Floats, labels: Floats, weights: Floats | None) -> Estimate:
    terms = np.stack([log_losses(logits, labels), labels], axis=1)
    return mean_estimate(terms, _normalised_entropy, weights)


def _normalised_entropy(means: Floats) -> Floats:
    rate = means[..., 1]
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    found: Floats = means[..., 0] / entropy
    return found


def _calibration(logits: Floats, labels: Floats, weights: Floats | None) -> Estimate:
    return mean_estimate(np.stack([sigmoid(logits), labels], axis=1), _ratio, weights)


def _ratio(means: Floats) -> Floats:
    found: Floats = means[..., 0] / means[..., 1]
    return found


def _mse(predictions: Floats, targets: Floats, weights: Floats | None) -> Estimate:
    return mean_estimate((predictions - targets) ** 2, weights=weights)


def _mae(predictions: Floats, targets: Floats, weights: Floats | None) -> Estimate:
    return mean_estimate(np.abs(predictions - targets), weights=weights)


def _accuracy(probabilities: Floats, classes: Floats, weights: Floats | None) -> Estimate:
    return mean_estimate(probabilities.argmax(1) == classes, weights=weights)


def _class_logloss(probabilities: Floats, classes: Floats, weights: Floats | None) -> Estimate:
    likelihoods = probabilities[np.arange(len(classes)), classes.astype(np.int64)]
    return mean_estimate(-np.log(likelihoods.clip(_LEAST)), weights=weights)


BINARY: Mapping[str, Estimator] = {
    "auc": auc_estimate,
    "logloss": _logloss,
    "ne": _ne,
    "calibration": _calibration,
}
"""Of logits and labels of 0 and 1, by the names of `BinaryMetrics`."""

REGRESSION: Mapping[str, Estimator] = {"mse": _mse, "mae": _mae}
"""Of predictions and numbers, by the names of `RegressionMetrics`."""

MULTICLASS: Mapping[str, Estimator] = {"accuracy": _accuracy, "logloss": _class_logloss}
"""Of probabilities ``(N, K)`` and classes, by the names of `MulticlassMetrics`."""
