"""The slow formulas themselves against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from tests.metrics import slow_formulas as slow

pytestmark = pytest.mark.once


def draw(size: int = 200) -> slow.Samples:
    """Return samples with ties and weights, in sessions of ten."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, size).astype(float)
    predictions = np.clip(np.round(random.random(size) * 0.7 + labels * 0.2, 2), 0.01, 0.99)
    weights = random.random(size)
    sessions = np.arange(size) // 10
    return slow.Samples(predictions, labels, weights, sessions, {"session_id": sessions})


def test_formulas_are_those_of_scikit_learn() -> None:
    s = draw()
    p, y, w = s.predictions, s.labels, s.weights
    weighted = {"sample_weight": w}
    mean = np.full_like(p, (w * y).sum() / w.sum())
    found = {
        **slow.ne_with_logloss(s),
        **slow.mse_with_r_squared(s),
        **slow.mae(s),
        **slow.auc(s),
        **slow.auprc(s),
        **slow.accuracy(0.5)(s),
        **slow.precision(0.5)(s),
        **slow.recall(0.5)(s),
    }
    chosen = p >= 0.5
    loss = metrics.log_loss(y, p, **weighted)
    assert found == pytest.approx(
        {
            "ne": loss / metrics.log_loss(y, mean, **weighted),
            "logloss": loss / np.log(2),
            "mse": metrics.mean_squared_error(y, p, **weighted),
            "rmse": metrics.mean_squared_error(y, p, **weighted) ** 0.5,
            "r_squared": metrics.r2_score(y, p, **weighted),
            "mae": metrics.mean_absolute_error(y, p, **weighted),
            "auc": metrics.roc_auc_score(y, p, **weighted),
            "auprc": metrics.average_precision_score(y, p, **weighted),
            "accuracy": metrics.accuracy_score(y, chosen, **weighted),
            "precision": metrics.precision_score(y, chosen, **weighted),
            "recall": metrics.recall_score(y, chosen, **weighted),
        },
        rel=1e-9,
    )


@pytest.mark.parametrize("k", [-1, 3])
def test_ndcg_is_that_of_scikit_learn(k: int) -> None:
    s = draw()
    scores = s.predictions + np.arange(200) * 1e-6  # no ties
    ones = np.ones(200)
    samples = slow.Samples(scores, s.labels, ones, s.batch, s.extra)
    expected = metrics.ndcg_score(
        s.labels.reshape(-1, 10), scores.reshape(-1, 10), k=None if k < 0 else k
    )
    assert slow.ndcg(loss=False, k=k)(samples)["ndcg"] == pytest.approx(expected, rel=1e-12)


def test_classes_among_the_first_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    scores, labels = random.random((100, 4)), random.integers(0, 4, 100)
    weights = random.random(100)
    samples = slow.Samples(scores, labels.astype(float), weights, np.zeros(100, np.int64))
    expected = [
        metrics.top_k_accuracy_score(labels, scores, k=k, sample_weight=weights) for k in (1, 2, 3)
    ]
    assert slow.multiclass_recall(samples)[:3] == pytest.approx(expected, rel=1e-12)
