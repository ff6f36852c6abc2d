"""Streaming metrics against scikit-learn and plain formulas, over distributions of every kind."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from torchrec.metrics import BinaryMetrics, auc_estimate

pytestmark = pytest.mark.once

N = 300_000
INF = math.inf


def clicks(logits: Tensor) -> Tensor:
    return torch.bernoulli(torch.sigmoid(logits))


def noisy(shift: float, scale: float) -> Callable[[], tuple[Tensor, Tensor]]:
    def make() -> tuple[Tensor, Tensor]:
        signal = torch.randn(N)
        return shift + scale * (signal + 0.3 * torch.randn(N)), clicks(2 * signal - 1)

    return make


def apart() -> tuple[Tensor, Tensor]:
    """Positives one step of float32 above negatives: only exact scores see the difference."""
    labels = clicks(torch.zeros(N))
    one = torch.ones(N)
    return torch.where(labels > 0, torch.nextafter(one, 2 * one), one), labels


def rare() -> tuple[Tensor, Tensor]:
    labels = torch.zeros(N)
    labels[torch.randperm(N)[:40]] = 1
    return torch.randn(N) + labels, labels


def steep() -> tuple[Tensor, Tensor]:
    return torch.randn(N).exp().pow(8) * torch.randn(N).sign(), clicks(torch.randn(N))


def rising() -> tuple[Tensor, Tensor]:
    """Sorted, so that every buffer lies above all that came before."""
    logits = torch.randn(N).sort().values
    return logits, clicks(3 * logits)


def drifting() -> tuple[Tensor, Tensor]:
    logits = torch.randn(N) * 0.01 + torch.arange(N) / N
    return logits, clicks(40 * (logits - torch.arange(N) / N))


def alternating() -> tuple[Tensor, Tensor]:
    """Classes take turns along the scores."""
    order = torch.randperm(N)
    return (order / N).float(), (order // 500 % 2).float()


def infinite() -> tuple[Tensor, Tensor]:
    logits = torch.randn(N)
    logits[:1000], logits[1000:2000] = INF, -INF
    labels = clicks(logits)
    labels[:500] = 0
    return logits, labels


def one_score_for_half(rate: Callable[[Tensor], Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    """Half of the samples have the same score, and the rate of positives moves with time."""

    def make() -> tuple[Tensor, Tensor]:
        logits = torch.where(torch.rand(N) < 0.5, torch.tensor(0.3), torch.randn(N))
        return logits, torch.bernoulli(rate(torch.arange(N) / N))

    return make


CASES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "normal": noisy(0, 1),
    "concentrated": noisy(-4.6, 1e-3),
    "concentrated around zero": noisy(0, 1e-12),
    "tiny": noisy(0, 1e-40),
    "wide": noisy(0, 1e30),
    "ties": lambda: ((torch.randn(N) * 2).round(), clicks(torch.randn(N))),
    "all equal": lambda: (torch.full((N,), -3.0), clicks(torch.zeros(N) - 1)),
    "two values": lambda: (clicks(torch.zeros(N)), clicks(torch.randn(N))),
    "signed zeros": lambda: (clicks(torch.zeros(N)).mul(2).sub(1) * 0.0, clicks(torch.randn(N))),
    "apart by one step": apart,
    "rare positives": rare,
    "steep": steep,
    "rising": rising,
    "drifting": drifting,
    "alternating": alternating,
    "infinite": infinite,
    "one score for half, drifting": one_score_for_half(lambda time: 0.01 + 0.04 * (time > 0.5)),
    "one score for half, sorted by label": one_score_for_half(lambda time: (time > 0.5).float()),
    "bf16": lambda: ((x := torch.randn(N)).bfloat16(), clicks(x)),
}


def stream(metrics: BinaryMetrics, *tensors: Tensor, batch: int = 4999) -> BinaryMetrics:
    for parts in zip(*(t.split(batch) for t in tensors), strict=True):
        metrics.update(*parts)
    return metrics


def expected_auc(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    scores = logits.double().clamp(-1e40, 1e40).numpy()  # it takes no infinities
    return float(roc_auc_score(labels.numpy(), scores, sample_weight=weights))


@pytest.mark.parametrize("case", CASES)
def test_auc_is_that_of_scikit_learn(case: str) -> None:
    """Compressed many times: a list of 32,768 scores takes in 37 buffers."""
    logits, labels = CASES[case]()
    report = stream(BinaryMetrics(buffer=8192), logits, labels).compute()
    assert report.auc == pytest.approx(expected_auc(logits, labels), abs=1e-4)
    exact = stream(BinaryMetrics(buffer=8192, resolution=N), logits, labels).compute()
    assert exact.auc == pytest.approx(expected_auc(logits, labels), abs=1e-12)


@pytest.mark.parametrize("case", ["normal", "rare positives", "drifting", "alternating"])
def test_auc_is_close_at_a_coarse_resolution(case: str) -> None:
    """The bound of a compression does not depend on the distribution."""
    logits, labels = CASES[case]()
    metrics = stream(BinaryMetrics(resolution=500), logits, labels)
    assert metrics.compute().auc == pytest.approx(expected_auc(logits, labels), abs=3 * 2 / 500)
    assert len(metrics._scores.counts().keys) <= 1001


def test_losses_are_exact() -> None:
    logits = torch.randn(50_000, dtype=torch.float32) * 5 - 2
    labels = clicks(logits)
    report = stream(BinaryMetrics(buffer=777), logits, labels).compute()
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    loss = log_loss(labels.numpy(), p)
    assert report.logloss == pytest.approx(loss, rel=1e-13)
    rate = labels.double().mean().item()
    assert report.ne == pytest.approx(loss / log_loss(labels.numpy(), np.full(len(p), rate)))
    assert report.calibration == pytest.approx(p.sum() / labels.double().sum().item(), rel=1e-13)
    assert (report.samples, report.positives) == (50_000, labels.sum().item())


def test_weights_count_as_often() -> None:
    """A sample of weight 3 is three samples, one of weight 0 none."""
    logits, labels = torch.randn(2000).round(decimals=1), clicks(torch.zeros(2000))
    weights = torch.randint(0, 4, (2000,))
    logits[weights == 0] = INF
    metrics = BinaryMetrics(buffer=300)
    metrics.update(
        logits[:100].repeat_interleave(weights[:100]), labels[:100].repeat_interleave(weights[:100])
    )
    stream(metrics, logits[100:], labels[100:], weights[100:], batch=123)
    repeated = BinaryMetrics(buffer=300)
    repeated.update(logits.repeat_interleave(weights), labels.repeat_interleave(weights))
    weighted, plain = metrics.compute(), repeated.compute()
    for name in ("auc", "ne", "logloss", "calibration", "weight", "positives"):
        assert getattr(weighted, name) == pytest.approx(getattr(plain, name), rel=1e-12)


@pytest.mark.parametrize(
    ("labels", "undefined"),
    [
        ([1, 1], {"auc": "all labels are 1", "ne": "all labels are 1"}),
        (
            [0, 0],
            {"auc": "all labels are 0", "ne": "all labels are 0", "calibration": "no label is 1"},
        ),
    ],
)
def test_one_class_is_nan_with_a_reason(labels: list[int], undefined: dict[str, str]) -> None:
    metrics = BinaryMetrics()
    metrics.update(torch.tensor([0.0, 1.0]), torch.tensor(labels))
    report = metrics.compute()
    assert report.undefined == undefined
    assert all(math.isnan(getattr(report, name)) for name in undefined)
    assert math.isfinite(report.logloss)
    assert report.to_json()["auc"] is None


def test_no_samples_is_nan_with_a_reason() -> None:
    report = BinaryMetrics().compute()
    assert set(report.undefined) == {"auc", "ne", "logloss", "calibration"}
    assert set(report.undefined.values()) == {"there are no samples"}


def test_wrong_infinity_costs_infinity() -> None:
    metrics = BinaryMetrics()
    metrics.update(torch.tensor([INF, -INF]), torch.tensor([1, 0]))
    assert metrics.compute().logloss == 0.0
    metrics.update(torch.tensor([INF]), torch.tensor([0]))
    assert metrics.compute().logloss == INF


@pytest.mark.parametrize(
    ("logits", "labels", "weights", "message"),
    [
        ([0.0, math.nan], [0, 1], [1, 1], "`logits` should be numbers. Received nan in update 3, sample 1."),
        ([0.0, 1.0], [0.5, 1], [1, 1], "`labels` should be 0 or 1. Received 0.5 in update 3, sample 0."),
        ([0.0, 1.0], [0, math.nan], [1, 1], "`labels` should be 0 or 1. Received nan in update 3, sample 1."),
        ([0.0, 1.0], [0, 1], [1, -1], "finite and not negative. Received -1.0 in update 3, sample 1."),
    ],
)  # fmt: skip
def test_bad_values_are_named(
    logits: list[float], labels: list[float], weights: list[float], message: str
) -> None:
    metrics = BinaryMetrics(buffer=5)
    metrics.update(torch.zeros(3), torch.zeros(3))
    metrics.update(torch.zeros(3), torch.zeros(3))
    metrics.update(torch.tensor(logits), torch.tensor(labels), torch.tensor(weights))
    with pytest.raises(ValueError, match="Received") as caught:
        metrics.compute()
    assert message in str(caught.value)


def test_sizes_that_differ() -> None:
    with pytest.raises(
        ValueError, match=r"`labels` should be as many as logits \(2\). Received 3."
    ):
        BinaryMetrics().update(torch.zeros(2), torch.zeros(3))
    with pytest.raises(
        ValueError, match=r"`weights` should be as many as logits \(2\). Received 1."
    ):
        BinaryMetrics().update(torch.zeros(2), torch.zeros(2), torch.zeros(1))
    with pytest.raises(ValueError, match=r"`buffer` should be at least 1\. Received 0\."):
        BinaryMetrics(buffer=0)


def test_merged_parts_are_the_whole() -> None:
    logits, labels = torch.randn(9000), clicks(torch.randn(9000))
    whole = stream(BinaryMetrics(), logits, labels).compute()
    first = stream(BinaryMetrics(buffer=1000), logits[:4000], labels[:4000])
    second = stream(BinaryMetrics(buffer=1000), logits[4000:], labels[4000:])
    first.merge(second)
    assert first.compute().auc == pytest.approx(whole.auc, abs=1e-12)
    assert first.compute().logloss == pytest.approx(whole.logloss, rel=1e-12)
    assert second.compute().samples == 5000


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    levels=st.integers(1, 50),
    buffer=st.integers(1, 60),
    weighted=st.sampled_from([(False,), (True,), (False, True)]),
    seed=st.integers(0, 99),
)
def test_nothing_is_lost_or_counted_twice(
    sizes: list[int], levels: int, buffer: int, weighted: tuple[bool, ...], seed: int
) -> None:
    """Whatever is updated, merged and asked in between, at a resolution where all is compressed."""
    random = torch.Generator().manual_seed(seed)
    metrics, window = (BinaryMetrics(buffer, resolution=2) for _ in range(2))
    expected = [0.0, 0.0]
    for number, size in enumerate(sizes):
        labels = torch.randint(0, 2, (size,), generator=random)
        logits = torch.randint(-levels, levels, (size,), generator=random) / 7
        weights = torch.randint(1, 4, (size,), generator=random)
        if not weighted[number % len(weighted)]:
            weights = torch.ones_like(weights)
            window.update(logits, labels)
        else:
            window.update(logits, labels, weights)
        expected[0] += float((weights * labels).sum())
        expected[1] += float((weights * (1 - labels)).sum())
        if number % 3 == 0:
            window.compute()
        if number % 4 == 1:
            metrics.merge(window)
            window.reset()
    metrics.merge(window)
    curves = metrics.curves()
    assert [sum(curves.positives), sum(curves.negatives)] == expected
    assert metrics.compute().positives == expected[0]


def test_weights_of_integers_are_not_rounded_with_the_logits() -> None:
    metrics = BinaryMetrics()
    metrics.update(torch.zeros(2).bfloat16(), torch.tensor([0, 1]), torch.tensor([1, 1001]))
    assert metrics.compute().weight == 1002


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 3, 7])
def test_state_goes_on_bit_for_bit(stop: int, weighted: bool) -> None:
    logits, labels = torch.randn(10, 1000), clicks(torch.zeros(10, 1000))
    weights = torch.rand(10, 1000) if weighted else [None] * 10
    batches = list(zip(logits, labels, weights, strict=True))
    one, before, after = (BinaryMetrics(buffer=2500, resolution=700) for _ in range(3))
    for batch in batches:
        one.update(*batch)
    for batch in batches[:stop]:
        before.update(*batch)
    after.update(torch.ones(3), torch.ones(3))
    after.load_state_dict(before.state_dict())
    for batch in batches[stop:]:
        after.update(*batch)
    assert after.compute() == one.compute()
    assert all(map(torch.equal, after.state_dict().values(), one.state_dict().values()))


def test_reset_forgets() -> None:
    metrics = stream(BinaryMetrics(), torch.zeros(20), torch.ones(20), torch.rand(20))
    metrics.reset()
    assert metrics.compute().samples == 0
    fresh = BinaryMetrics().state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in metrics.state_dict().items())


def test_curves_add_up() -> None:
    logits = torch.randn(20_000) * 2
    labels = clicks(logits)
    curves = stream(BinaryMetrics(), logits, labels).curves(bars=10, groups=8)
    p = torch.sigmoid(logits.double())
    order = p.argsort()
    for name, chosen in (("positives", labels > 0), ("negatives", labels == 0)):
        expected = np.histogram(p[chosen].numpy(), 10, (0, 1))[0]
        assert getattr(curves, name) == expected.tolist()
    assert curves.group_weight == [2500.0] * 8
    predicted = p[order].view(8, -1).mean(1)
    assert curves.predicted == pytest.approx(predicted.tolist(), rel=1e-6)
    assert curves.observed == pytest.approx(labels.double()[order].view(8, -1).mean(1).tolist())


@pytest.mark.parametrize("resolution", [N, 200], ids=["exact", "compressed"])
def test_the_interval_of_the_auc_is_that_of_all_pairs(resolution: int) -> None:
    logits = (torch.randn(4000) * 20).round() / 20
    labels = clicks(logits)
    metrics = stream(BinaryMetrics(resolution=resolution), logits, labels)
    found, expected = (
        metrics.compute(curves=True).intervals["auc"],
        auc_estimate(logits.numpy(), labels.numpy()).interval(),
    )
    near = 1e-9 if resolution == N else 1e-3
    for end in ("value", "low", "high"):
        assert getattr(found, end) == pytest.approx(getattr(expected, end), abs=near)


def test_there_is_no_interval_where_none_is_known() -> None:
    logits, labels = torch.arange(4.0), torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert not stream(BinaryMetrics(), logits, labels).compute().intervals  # only with curves
    assert not stream(BinaryMetrics(), logits, labels, 2 * labels + 1).compute(True).intervals
    assert not stream(BinaryMetrics(), logits, labels.sort()[0]).compute(True).intervals
    assert not stream(BinaryMetrics(), logits[:2], labels[:2]).compute(True).intervals


def test_memory_is_constant() -> None:
    metrics = BinaryMetrics(buffer=4096, resolution=1024)
    for _ in range(60):
        metrics.update(torch.randn(4096), clicks(torch.zeros(4096)))
        state = metrics.state_dict()
        assert len(state["keys"]) <= 8 * 1024
        assert len(state["pairs"]) <= 2 * 1024
        assert state["waiting"].numel() == 0
