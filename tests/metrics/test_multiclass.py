"""Metrics of classes: against the plain formulas."""

from __future__ import annotations

import math

import pytest
import torch

from torchrec.metrics import MulticlassMetrics

pytestmark = pytest.mark.once


def test_several_updates_with_weights() -> None:
    metrics, other = MulticlassMetrics(), MulticlassMetrics()
    right = weight = losses = 0.0
    for number, one in enumerate([metrics, other, metrics]):
        scores = torch.rand(7, 4).softmax(1)
        classes, weights = torch.randint(0, 4, (7,)), torch.rand(7) + number
        one.update(scores, classes.float(), weights)
        for p, y, w in zip(scores.tolist(), classes.tolist(), weights.tolist(), strict=True):
            right += w * (p.index(max(p)) == y)
            losses -= w * math.log(p[y])
            weight += w
    metrics.merge(other)
    again = MulticlassMetrics()
    again.load_state_dict(metrics.state_dict())
    report = again.compute()
    assert report.accuracy == pytest.approx(right / weight)
    assert report.logloss == pytest.approx(losses / weight, rel=1e-6)
    assert (report.samples, report.weight) == (21, pytest.approx(weight))
    assert report.better == {"accuracy": "higher", "logloss": "lower"}


def test_nothing_yet() -> None:
    report = MulticlassMetrics().compute()
    assert list(report) == ["accuracy", "logloss"]
    assert report.undefined == dict.fromkeys(report, "there are no samples")


def test_what_is_refused() -> None:
    metrics = MulticlassMetrics()
    with pytest.raises(ValueError, match=r"`scores` should have shape \(B, K\). Received \(3,\)"):
        metrics.update(torch.rand(3), torch.zeros(3))
    with pytest.raises(
        ValueError, match=r"`targets` should be as many as scores \(3\). Received 2"
    ):
        metrics.update(torch.rand(3, 2), torch.zeros(2))
    metrics.update(torch.full((1, 2), math.nan), torch.zeros(1))
    with pytest.raises(ValueError, match="`scores` should be probabilities"):
        metrics.compute()
    metrics.reset()
    metrics.update(torch.rand(1, 2), torch.zeros(1), torch.tensor([-1.0]))
    with pytest.raises(
        ValueError, match=r"`weights` should be finite and not negative. Received 1 of"
    ):
        metrics.compute()
