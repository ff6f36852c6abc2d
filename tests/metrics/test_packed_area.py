"""The AUC by one sort of integers, against the plain formula over all pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchrec.metrics.auc import area_under_curve, compute_auc
from torchrec.metrics.packed_area import packed_areas

pytestmark = pytest.mark.once


def _by_pairs(scores: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Return the share of the weight of pairs in order, half of it for ties."""
    scores, positives = scores.double(), (weights * labels).double()
    negatives = weights.double() - positives
    ahead = (scores[:, None] > scores[None]).double() + (scores[:, None] == scores[None]) / 2
    pairs = positives.sum() * negatives.sum()
    return (positives @ ahead @ negatives / pairs).item() if pairs else 0.5


def _parts(size: int, decimals: int, low: float, seed: int = 0) -> list[list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    scores = (torch.rand(2, size, generator=draw) * (1 - low) + low).round(decimals=decimals)
    labels = torch.rand(2, size, generator=draw).round()
    weights = torch.rand(2, size, generator=draw) * (torch.rand(2, size, generator=draw) > 0.2)
    return [list(x.split(max(size // 3, 1), -1)) for x in (scores, labels, weights)]


@pytest.mark.parametrize("size", [1, 2, 7, 300])
@pytest.mark.parametrize("decimals", [0, 1, 6], ids=lambda d: f"decimals={d}")
@pytest.mark.parametrize("low", [0.0, -1.0], ids=["positive", "signed"])
def test_areas_are_those_over_all_pairs(size: int, decimals: int, low: float) -> None:
    parts = _parts(size, decimals, low)
    scores, labels, weights = (torch.cat(x, -1) for x in parts)
    found = packed_areas(2, *parts)
    assert found is not None
    for task in range(2):
        expected = _by_pairs(scores[task], labels[task], weights[task])
        assert found[task].item() == pytest.approx(expected, abs=1e-12)
        plain = area_under_curve(scores[task], labels[task], weights[task])
        assert plain.item() == pytest.approx(expected, abs=1e-12)


def test_zero_and_minus_zero_tie_and_one_class_is_a_half() -> None:
    one = torch.ones(1, 2)
    signed = torch.tensor([[0.0, -0.0]])
    for labels, expected in (([0.0, 1.0], 0.5), ([1.0, 1.0], 0.5), ([0.0, 0.0], 0.5)):
        found = packed_areas(1, [signed], [torch.tensor([labels])], [one])
        assert found is not None
        assert found.item() == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("labels", 0.3), ("weights", -1.0), ("predictions", float("nan")), ("weights", float("nan"))],
)
def test_what_cannot_be_packed_is_worked_out_otherwise(name: str, value: float) -> None:
    parts = {
        "predictions": torch.tensor([[0.1, 0.2, 0.3]]),
        "labels": torch.tensor([[0.0, 1.0, 0.0]]),
        "weights": torch.ones(1, 3),
    }
    parts[name][0, 1] = value
    lists = [[x] for x in parts.values()]
    assert packed_areas(1, *lists) is None
    found = compute_auc(1, *lists)
    expected = area_under_curve(*(x[0] for x in parts.values())).float()
    assert str(found.item()) == str(expected.item())


def test_other_types_and_no_samples_are_worked_out_otherwise() -> None:
    empty = [torch.empty(2, 0)]
    assert packed_areas(2, empty, empty, empty) is None
    assert compute_auc(2, empty, empty, empty).tolist() == [0.5, 0.5]
    parts = [[x.double() for x in of] for of in _parts(20, 1, 0.0)]
    assert packed_areas(2, *parts) is None
    scores, labels, weights = (torch.cat(x, -1) for x in parts)
    expected = [_by_pairs(scores[i], labels[i], weights[i]) for i in range(2)]
    assert compute_auc(2, *parts).tolist() == pytest.approx(expected, abs=1e-7)
