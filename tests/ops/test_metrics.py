"""Sums and areas of tasks, against the plainest loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from torchrec.ops import _library
from torchrec.ops.metrics import (
    cross_entropy_sums,
    reference,
    roc_areas,
    threshold_sums,
    weighted_sums,
)

Samples = tuple[Tensor, Tensor, Tensor | None]


def samples(size: int, soft: bool, weighted: bool, decimals: int = 7) -> Samples:
    """Three tasks; with few decimals many scores are equal."""
    draw = torch.Generator().manual_seed(size)
    labels = torch.rand(3, size, generator=draw)
    weights = torch.rand(3, size, generator=draw) * (torch.rand(3, size, generator=draw) > 0.2)
    scores = torch.rand(3, size, generator=draw).round(decimals=decimals)
    return scores, labels if soft else labels.round(), weights if weighted else None


def in_loops(given: Samples) -> list[list[float]]:
    """Return sums, cross-entropy and sums at the threshold 0.5 of each task."""
    found = []
    for p_of, y_of, w_of in zip(
        given[0],
        given[1],
        [[1.0] * given[0].shape[1]] * 3 if given[2] is None else given[2],
        strict=True,
    ):
        sums = [0.0] * 10
        for p, y, w in zip(map(float, p_of), map(float, y_of), map(float, w_of), strict=True):
            inside = min(max(p, 1e-12), 1 - 1e-12)
            bits = y * math.log2(inside) + (1 - y) * math.log2(1 - inside)
            side = p >= 0.5
            terms = [1, y, p, (y - p) ** 2, abs(y - p), -bits]
            terms += [side * y, side * (1 - y), (not side) * y, side == y]
            sums = [s + w * t for s, t in zip(sums, terms, strict=True)]
        found.append(sums)
    return found


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 63])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_those_of_loops(size: int, soft: bool, weighted: bool, dtype: torch.dtype) -> None:
    predictions, labels, weights = samples(size, soft, weighted, decimals=1)
    given = predictions.to(dtype), labels, weights
    found = [
        weighted_sums(*given),
        cross_entropy_sums(*given, 1e-12).unsqueeze(0),
        threshold_sums(*given, 0.5),
    ]
    expected = torch.tensor(in_loops(given), dtype=torch.float64).view(3, 10)
    torch.testing.assert_close(torch.cat(found).T, expected, rtol=1e-12, atol=1e-12)


def by_pairs(scores: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Return the share of the weight of pairs in order, half of it for ties."""
    scores, positives = scores.double(), weights.double() * labels.double()
    negatives = weights.double() - positives
    ahead = (scores[:, None] > scores[None]).double() + (scores[:, None] == scores[None]) / 2
    pairs = positives.sum() * negatives.sum()
    return (positives @ ahead @ negatives / pairs).item() if pairs else 0.5


@pytest.mark.parametrize("size", [1, 2, 7, 300])
@pytest.mark.parametrize("decimals", [0, 1, 6], ids=lambda d: f"decimals={d}")
@pytest.mark.parametrize("low", [0.0, -1.0], ids=["positive", "signed"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_areas_are_those_over_all_pairs(size: int, decimals: int, low: float, soft: bool) -> None:
    scores, labels, weights = samples(size, soft, True)
    assert weights is not None
    scores = (scores * (1 - low) + low).round(decimals=decimals)
    for found in (roc_areas(scores, labels, weights), reference.roc_areas(scores, labels, weights)):
        expected = [by_pairs(*rows) for rows in zip(scores, labels, weights, strict=True)]
        assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_areas_at_the_edges() -> None:
    signed = torch.tensor([[0.0, -0.0]])
    for labels in ([0.0, 1.0], [1.0, 1.0], [0.0, 0.0]):
        assert roc_areas(signed, torch.tensor([labels]), None).tolist() == [0.5]
    assert roc_areas(torch.empty(2, 0), torch.empty(2, 0), None).tolist() == [0.5, 0.5]
    ends = torch.tensor([[-math.inf, -1e-40, 1e-40, math.inf]])
    assert roc_areas(ends, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), None).tolist() == [1.0]


@pytest.mark.parametrize("where", ["predictions", "labels", "weights"])
def test_a_nan_is_of_its_task_alone(where: str) -> None:
    given = dict(zip(("predictions", "labels", "weights"), samples(9, False, True), strict=True))
    tensor = given[where]
    assert tensor is not None
    tensor[1, 3] = math.nan
    columns = tuple(given.values())
    for found in (
        cross_entropy_sums(*columns, 1e-12),
        threshold_sums(*columns, 0.5)[0],
        roc_areas(*columns),
    ):
        assert found.isnan().tolist() == [False, True, False]
    unknown = {"predictions": [2, 3, 4], "labels": [1, 3, 4], "weights": [0, 1, 2, 3, 4]}
    assert weighted_sums(*columns)[:, 1].isnan().nonzero().flatten().tolist() == unknown[where]


def test_a_threshold_is_of_the_type_of_the_predictions() -> None:
    """0.1 in float32 is above 0.1."""
    one = torch.ones(1, 1)
    for dtype in (torch.float32, torch.float64):
        predictions = torch.tensor([[0.1]], dtype=dtype)
        assert threshold_sums(predictions, one, None, 0.1).flatten().tolist() == [1, 0, 0, 1]


@pytest.mark.skipif(_library.native is None, reason="the kernels are not in use")
def test_results_do_not_depend_on_threads() -> None:
    given = samples(50_000, True, True)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(torch.cat([weighted_sums(*given), roc_areas(*given).unsqueeze(0)]))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3,), (3,), (3,)), "`predictions` should be two-dimensional"),
        (((2, 3), (3, 2), (2, 3)), r"`labels` should be \[2, 3\], as `predictions`"),
        (((2, 3), (2, 3), (2, 1)), r"`weights` should be \[2, 3\], as `predictions`"),
    ],
)
def test_other_shapes_are_refused(
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        weighted_sums(*map(torch.ones, shapes))
