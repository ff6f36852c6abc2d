"""Errors of predicted numbers, against scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error

from torchrec.metrics import RegressionMetrics

pytestmark = pytest.mark.once


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64], ids=str)
def test_errors_of_a_stream(weighted: bool, dtype: torch.dtype) -> None:
    scores, targets = torch.randn(100), (torch.randn(100) * 5).to(dtype)
    weights = torch.rand(100) if weighted else None
    metrics, other = RegressionMetrics(), RegressionMetrics()
    for to, part in ((metrics, slice(0, 7)), (metrics, slice(7, 7)), (other, slice(7, 100))):
        to.update(
            scores[part].view(-1, 1), targets[part], None if weights is None else weights[part]
        )
    before = other.compute()
    metrics.merge(other)
    report = metrics.compute()
    given = (targets.double().numpy(), scores.double().numpy())
    by = None if weights is None else weights.double().numpy()
    assert report.mse == pytest.approx(mean_squared_error(*given, sample_weight=by), rel=1e-12)
    assert report.mae == pytest.approx(mean_absolute_error(*given, sample_weight=by), rel=1e-12)
    assert report.samples == 100
    assert report.weight == pytest.approx(100 if by is None else by.sum())
    assert other.compute() == before
    again = RegressionMetrics()
    again.load_state_dict(metrics.state_dict())
    assert again.compute() == report
    again.reset()
    assert math.isnan(again.compute().mse)
    assert again.compute().undefined == {
        "mse": "there are no samples", "mae": "there are no samples"
    }  # fmt: skip


def test_wrong_input_is_refused() -> None:
    metrics = RegressionMetrics()
    with pytest.raises(
        ValueError, match=r"`targets` should be as many as scores \(2\). Received 3"
    ):
        metrics.update(torch.zeros(2), torch.zeros(3))
    with pytest.raises(
        ValueError, match=r"`weights` should be as many as scores \(2\). Received 1"
    ):
        metrics.update(torch.zeros(2), torch.zeros(2), torch.zeros(1))
    for bad in (-1.0, math.nan):
        metrics.reset()
        metrics.update(torch.zeros(2), torch.zeros(2), torch.tensor([1.0, bad]))
        with pytest.raises(ValueError, match=r"finite and not negative. Received 1 of 2 that are"):
            metrics.compute()
    metrics.reset()
    metrics.update(torch.tensor([0.0, math.nan]), torch.zeros(2))
    with pytest.raises(ValueError, match="`scores` and `targets` should be numbers"):
        metrics.compute()
